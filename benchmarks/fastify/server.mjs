// The four operations as Fastify's documentation has them: schemas for what comes in and goes out, one pool.
// With JWT_SECRET it does what the service does besides: a token is checked, and each request is logged with its id.
import Fastify from "fastify";
import jwt from "@fastify/jwt";
import pg from "pg";

const { DATABASE_URL, PORT, JWT_SECRET } = process.env;
const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 10 });

const COLUMNS = "id, user_id, title, description, completed, created_at, updated_at";
const READ = { name: "read", text: `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2` };
const LIST = {
  name: "list",
  text: `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1000`,
};
const TOGGLE = {
  name: "toggle",
  text: `UPDATE tasks SET completed = NOT completed, updated_at = now() WHERE user_id = $1 AND id = $2
    RETURNING ${COLUMNS}`,
};
const CREATE = {
  name: "create",
  text: `INSERT INTO tasks (user_id, id, title, description, completed)
    VALUES ($1, gen_random_uuid(), $2, $3, false) RETURNING ${COLUMNS}`,
};

const task = {
  type: "object",
  required: ["id", "user_id", "title", "description", "completed", "created_at", "updated_at"],
  properties: {
    id: { type: "string" },
    user_id: { type: "string" },
    title: { type: "string" },
    description: { type: ["string", "null"] },
    completed: { type: "boolean" },
    created_at: { type: "string", format: "date-time" },
    updated_at: { type: "string", format: "date-time" },
  },
};
const owner = { type: "string", pattern: "^[A-Za-z0-9_|.:@+=~-]{1,128}$" };
const ofUser = { type: "object", required: ["user_id"], properties: { user_id: owner } };
const ofTask = {
  type: "object",
  required: ["user_id", "id"],
  properties: { user_id: owner, id: { type: "string", format: "uuid" } },
};
const newTask = {
  type: "object",
  required: ["title"],
  properties: {
    title: { type: "string", minLength: 1, maxLength: 200 },
    description: { type: ["string", "null"], maxLength: 5000 },
  },
};

const app = Fastify({ logger: Boolean(JWT_SECRET), disableRequestLogging: true });

if (JWT_SECRET) {
  await app.register(jwt, { secret: JWT_SECRET, verify: { cache: 16_384 } });
  app.addHook("preHandler", async (request, reply) => {
    await request.jwtVerify();
    if (request.user.sub !== request.params.user_id) {
      return reply.code(403).send({ message: "The token was issued for another user." });
    }
  });
  app.addHook("onResponse", async (request, reply) => {
    const { method, routeOptions } = request;
    request.log.info({ method, route: routeOptions.url, status: reply.statusCode, duration_ms: reply.elapsedTime });
  });
}

async function first(query, values, reply) {
  const { rows } = await pool.query({ ...query, values });
  return rows[0] ?? reply.code(404).send({ message: "There is no such task." });
}

app.get("/health/live", async () => ({ status: "live" }));

app.get(
  "/api/:user_id/tasks",
  { schema: { params: ofUser, response: { 200: { type: "array", items: task } } } },
  async ({ params }) => (await pool.query({ ...LIST, values: [params.user_id] })).rows,
);

app.get("/api/:user_id/tasks/:id", { schema: { params: ofTask, response: { 200: task } } }, ({ params }, reply) =>
  first(READ, [params.user_id, params.id], reply),
);

app.patch(
  "/api/:user_id/tasks/:id/complete",
  { schema: { params: ofTask, response: { 200: task } } },
  ({ params }, reply) => first(TOGGLE, [params.user_id, params.id], reply),
);

app.post(
  "/api/:user_id/tasks",
  { schema: { params: ofUser, body: newTask, response: { 201: task } } },
  ({ params, body }, reply) => {
    reply.code(201);
    return first(CREATE, [params.user_id, body.title, body.description ?? null], reply);
  },
);

await app.listen({ host: "127.0.0.1", port: Number(PORT) });
