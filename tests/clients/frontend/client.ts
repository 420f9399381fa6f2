// Runs the files of docs/frontend.md against the service, through a proxy that fails on demand and has a path of its own.
import assert from "node:assert/strict";
import { createServer, request as forward } from "node:http";
import type { AddressInfo } from "node:net";
import { saveTask } from "./lib/save-task.js";
import { newKey, Problem, type Task, type TaskFilter, tasksApi } from "./lib/tasks.js";

type Fault = "dropped" | "cut" | "html" | "overloaded" | "outcome-unknown" | "closed for an hour";
const [service, user, expired, token] = process.argv.slice(2) as [string, string, string, string];
const faults: Fault[] = []; // of the next requests
const requests: { method: string | undefined; key: unknown }[] = [];

const proxy = createServer((request, response) => {
  const fault = faults.shift();
  requests.push({ method: request.method, key: request.headers["idempotency-key"] });
  const unavailable = (seconds: number) => {
    const problem = { type: `urn:problem-type:${fault}`, status: 503, detail: "Please try again." };
    response.writeHead(503, { "Retry-After": seconds }).end(JSON.stringify(problem));
  };
  if (fault === "overloaded") return unavailable(1);
  if (fault === "closed for an hour") return unavailable(3600);
  if (fault === "html") return response.writeHead(502, { "Content-Type": "text/html" }).end("<h1>Bad Gateway</h1>");
  const url = service + request.url?.replace(/^\/backend/, "");
  const forwarded = forward(url, { method: request.method, headers: request.headers }, (reply) => {
    if (fault === "dropped") return request.socket.destroy();
    if (fault === "outcome-unknown") return unavailable(1);
    response.writeHead(reply.statusCode ?? 0, reply.headers);
    return fault === "cut" ? response.write("{", () => request.socket.destroy()) : reply.pipe(response);
  });
  return request.pipe(forwarded);
});
await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
const address = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}/backend`;

async function expectRequests(methods: string, failures: Fault[], action: () => Promise<unknown>) {
  requests.length = 0;
  faults.push(...failures);
  await action();
  assert.deepEqual([requests.map(({ method }) => method).join(" "), faults], [methods, []]);
}

async function problemOf(action: Promise<unknown>): Promise<Problem> {
  const problem = await action.then(() => undefined, (error: unknown) => error);
  assert(problem instanceof Problem && problem instanceof Error, "There should be a problem");
  assert.equal(problem.message, problem.detail);
  return problem;
}

async function sizesAndTitles(filter?: TaskFilter) {
  const pages: Task[][] = [];
  for await (const page of api.pages(filter)) pages.push(page);
  return [pages.map(({ length }) => length), pages.flat().map(({ title }) => title)];
}

// The first token has expired. The client gets another one, once, and keeps it.
const tokens = [expired, token];
const api = tasksApi(address, user, async () => tokens.shift());
await expectRequests("GET GET GET", [], async () => {
  assert.deepEqual([await sizesAndTitles(), await sizesAndTitles()], [[[0], []], [[0], []]]);
});
const signedOut = tasksApi(address, user, async () => expired);
await expectRequests("POST POST", [], async () => {
  const { status, type } = await problemOf(signedOut.create({ title: "Any" }));
  assert.deepEqual([status, type], [401, "urn:problem-type:token-invalid"]);
});
const anonymous = tasksApi(address, user, async () => undefined);
assert.equal((await problemOf(anonymous.get("any"))).type, "urn:problem-type:token-missing");
assert.equal((await problemOf(tasksApi(address, "auth0|eve", async () => token).get("any"))).status, 403);

// A repeated POST has the same key and creates no other task, whatever became of the first one.
const failures: Fault[] = ["dropped", "cut", "html", "overloaded", "outcome-unknown"];
for (const failure of failures) {
  await expectRequests("POST POST", [failure], () => api.create({ title: failure }));
  assert(requests[0]?.key && requests[0].key === requests[1]?.key);
}
const key = newKey();
const task = await api.create({ title: "Call Bob" }, key);
assert.deepEqual([await api.create({ title: "Call Bob" }, key), newKey() === key], [task, false]);

// Lists have pages. A failure on the way leaves none out.
const titles = [...failures, "Call Bob"];
await expectRequests("GET GET GET GET", ["html", "dropped"], async () => {
  assert.deepEqual(await sizesAndTitles({ limit: 4, sort: "created_at", search: undefined }), [[4, 2], titles]);
});

// To set the state twice is the same as once.
await expectRequests("PATCH PATCH", ["dropped"], () => api.setCompleted(task.id, true));
const completed = await api.get(task.id);
assert(completed.completed);

// A conditional change is repeated only if the first request has certainly changed nothing.
await expectRequests("PUT PUT", ["overloaded"], () => api.update(completed, { description: "Today" }));
for (const failure of ["dropped", "html", "outcome-unknown"] as const) {
  const current = await api.get(task.id);
  await expectRequests("PUT", [failure], () => problemOf(api.update(current, { title: failure })));
}

// After a 412, changes of others to other fields are kept. Only a conflict is put to the user.
const questions: string[] = [];
let answer = false;
globalThis.confirm = (question = "") => questions.push(question) > 0 && answer;
assert.equal((await problemOf(api.update(task, { title: "Any" }))).status, 412);
const merged = await saveTask(api, { ...completed, title: "outcome-unknown" }, { title: "Call Carol" });
assert.deepEqual([merged.title, merged.description, merged.completed, questions], ["Call Carol", "Today", true, []]);
assert.equal((await saveTask(api, completed, { title: "Call Dave" })).title, "Call Carol");
answer = true;
assert.equal((await saveTask(api, completed, { title: "Call Dave" })).title, "Call Dave");
assert.deepEqual(questions, Array(2).fill("Somebody has changed this to “Call Carol”. Overwrite it?"));

// Whatever fails is a problem with a text for the user.
const invalid = await problemOf(api.create({ title: " " }));
assert.deepEqual([invalid.status, invalid.errors[0]?.pointer, typeof invalid.instance], [422, "#/title", "string"]);
await expectRequests("GET GET GET GET", Array(4).fill("html"), async () => {
  const { status, type, detail, errors } = await problemOf(api.get(task.id));
  assert.deepEqual([status, type, errors], [502, "about:blank", []]);
  assert.match(detail, /try again/);
});
await expectRequests("GET", ["closed for an hour"], () => problemOf(api.get(task.id)));

// A task is deleted, although the reply is lost, and although there is none. A wrong address is something else.
await expectRequests("DELETE", [], () => api.remove(merged.id));
const other = await api.create({ title: "Call Eve" });
await expectRequests("DELETE DELETE", ["dropped"], () => api.remove(other.id));
await api.remove(task.id);
assert.equal((await problemOf(api.get(task.id))).status, 404);
assert.equal((await problemOf(tasksApi(`${address}/else`, user, async () => token).remove(task.id))).status, 404);
process.exit(); // with replies that were dropped unread, and keep their connections open
