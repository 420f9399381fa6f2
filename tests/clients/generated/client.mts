// What a program does with the typescript-fetch client of openapi-generator.
import assert from "node:assert/strict";
import { Configuration, ProblemFromJSON, ProblemType, ResponseError, TasksApi } from "./index.js";

const [basePath, userId, accessToken] = process.argv.slice(2) as [string, string, string];
const api = new TasksApi(new Configuration({ basePath, accessToken }));

const task = await api.createTask({ userId, taskCreate: { title: "Buy oat milk", description: "The barista one" } });
const path = { userId, taskId: task.id };
assert(task.createdAt instanceof Date);
assert.deepEqual(task.createdAt, task.updatedAt);
assert.deepEqual(await api.getTask(path), task);
assert.deepEqual(await api.listTasks({ userId, completed: false }), [task]);

const updated = await api.updateTask({ ...path, taskUpdate: { title: "Buy milk" } });
assert.deepEqual([updated.title, updated.description, updated.completed], ["Buy milk", "The barista one", false]);
assert.deepEqual(updated.createdAt, task.createdAt);
assert.equal((await api.updateTask({ ...path, taskUpdate: { description: null } })).description, null);
assert.equal((await api.completeTask(path)).completed, true);
assert.equal((await api.completeTask({ ...path, completion: { completed: true } })).completed, true);
assert.equal((await api.completeTask({ ...path, completion: {} })).completed, false);

await api.deleteTask(path);
const error: unknown = await api.getTask(path).catch((reason: unknown) => reason);
assert(error instanceof ResponseError);
const problem = ProblemFromJSON(await error.response.json());
assert.equal(problem.type, ProblemType.UrnProblemTypeTaskNotFound);
// @ts-expect-error: a misspelt type does not compile.
assert(problem.type !== "urn:problem-type:task-not-fund");
assert.equal(problem.status, error.response.status);
