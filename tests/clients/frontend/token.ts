// Signs up at Better Auth, and lets the client use the tokens of `getToken`. A browser would send origin and cookies.
import assert from "node:assert/strict";
import { tasksApi } from "./lib/tasks.js";

const [service, issuer] = process.argv.slice(2) as [string, string];
process.env.BETTER_AUTH_URL = issuer;
let cookies = "";
const send = globalThis.fetch;
globalThis.fetch = (input, init) => {
  const headers = new Headers(init?.headers);
  headers.set("Cookie", cookies);
  headers.set("Origin", issuer);
  return send(input, { ...init, headers });
};
const { authClient, getToken } = await import("./lib/auth-client.js");
assert.equal(await getToken(), undefined);

const { data } = await authClient.signUp.email(
  { name: "Ada", email: "ada@example.com", password: "correct horse battery staple" },
  { onSuccess: ({ response }) => void (cookies = response.headers.getSetCookie().map((c) => c.split(";")[0]).join("; ")) },
);
assert(data);
const api = tasksApi(service, data.user.id, getToken);
const task = await api.create({ title: "Call Bob" });
assert.deepEqual(await api.get(task.id), task);
