// What a frontend does, with the types that openapi-typescript makes of the document (schema.ts).
// Any reply that is not as expected ends it with an error.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Task = components["schemas"]["TaskResponse"];
type Problem = components["schemas"]["Problem"];

const [baseUrl, user_id, token] = process.argv.slice(2) as [string, string, string];
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

function expected<T>({ data, error }: { data?: T; error?: Problem }): T {
  if (data === undefined) throw new Error(error?.detail);
  return data;
}

async function createTask(body: components["schemas"]["TaskCreate"]): Promise<Task> {
  const header = { "Idempotency-Key": crypto.randomUUID() };
  return expected(await client.POST("/api/{user_id}/tasks", { params: { path: { user_id }, header }, body }));
}

async function* allTasks(): AsyncGenerator<Task> {
  let cursor: string | undefined;
  do {
    const query = { status: "all", search: "a", sort: "created_at", limit: 2, cursor: cursor ?? "" } as const;
    const reply = await client.GET("/api/{user_id}/tasks", { params: { path: { user_id }, query } });
    yield* expected(reply);
    const next = /<([^>]+)>; rel="next"/.exec(reply.response.headers.get("Link") ?? "")?.[1];
    cursor = next && (new URL(next, baseUrl).searchParams.get("cursor") ?? undefined);
  } while (cursor);
}

function updateTask(body: components["schemas"]["TaskUpdate"], tag: string) {
  return client.PUT("/api/{user_id}/tasks/{task_id}", { params: { path, header: { "If-Match": tag } }, body });
}

// Create: optional fields may be left out, and come back all the same.
const task = await createTask({ title: "Buy oat milk" });
assert.deepEqual([task.description, task.completed], [null, false]);
const path = { user_id, task_id: task.id };
await createTask({ title: "Call Ada", description: "About the boat", completed: true });
await createTask({ title: "Call Grace", description: null });

// List, page by page.
const titles: string[] = [];
for await (const { title } of allTasks()) titles.push(title);
assert.deepEqual(titles, ["Buy oat milk", "Call Ada", "Call Grace"]);
const open = { params: { path: { user_id }, query: { completed: false } } };
assert.equal(expected(await client.GET("/api/{user_id}/tasks", open)).length, 2);

// Read, and ask whether it has changed.
const read = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
assert.deepEqual(expected(read), task);
const tag = read.response.headers.get("ETag") ?? "";
const header = { "If-None-Match": tag };
const unchanged = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path, header } });
assert.equal(unchanged.response.status, 304);

// Update, unless somebody else was first.
const changed = expected(await updateTask({ description: "The barista one" }, tag));
assert.deepEqual([changed.title, changed.description], ["Buy oat milk", "The barista one"]);
const late = await updateTask({ description: "Any" }, tag);
assert.equal(late.error?.type, "urn:problem-type:precondition-failed");
const cleared = expected(await updateTask({ title: "Buy milk", description: null, completed: false }, "*"));
assert.deepEqual([cleared.title, cleared.description, cleared.completed], ["Buy milk", null, false]);

// Toggle, and set.
const toggled = expected(await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", { params: { path } }));
assert.equal(toggled.completed, true);
const set = { params: { path }, body: { completed: true } };
assert.equal(expected(await client.PATCH("/api/{user_id}/tasks/{task_id}/complete", set)).completed, true);

// Errors say what is wrong.
const blank = { params: { path: { user_id } }, body: { title: " " } };
const invalid = await client.POST("/api/{user_id}/tasks", blank);
assert.deepEqual(
  invalid.error?.errors?.map(({ pointer }) => pointer),
  ["#/title"],
);

// Nobody else gets in.
const others = { params: { path: { user_id: `${user_id}-else` } } };
assert.equal((await client.GET("/api/{user_id}/tasks", others)).error?.type, "urn:problem-type:forbidden");
const anonymous = await createClient<paths>({ baseUrl }).GET("/api/{user_id}/tasks", { params: { path: { user_id } } });
assert.equal(anonymous.error?.type, "urn:problem-type:token-missing");
assert.equal(anonymous.response.headers.get("WWW-Authenticate"), 'Bearer realm="tasks"');

// Delete.
const deleted = await client.DELETE("/api/{user_id}/tasks/{task_id}", { params: { path } });
assert.equal(deleted.response.status, 204);
const gone = await client.GET("/api/{user_id}/tasks/{task_id}", { params: { path } });
assert.equal(gone.error?.status, 404);
