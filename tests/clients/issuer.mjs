// Better Auth with its plugin `jwt`, for test_better_auth.py. It prints its address when it listens, and ends when its
// standard input does, so that it never outlives the tests. All is kept in memory.
import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";

const server = createServer().listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const address = `http://127.0.0.1:${server.address().port}`;

const database = { user: [], session: [], account: [], verification: [], jwks: [] };
const auth = betterAuth({
  baseURL: address,
  secret: randomBytes(32).toString("hex"),
  database: memoryAdapter(database),
  emailAndPassword: { enabled: true },
  // The session cookie `session_data` is then a JWT too, signed with the same keys.
  session: { cookieCache: { enabled: true, strategy: "jwt" } },
  plugins: [jwt({ sessionCookieCache: true })],
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
});
const answer = toNodeHandler(auth);

// As if every key had expired so many seconds ago. What follows from that is up to Better Auth.
function expireKeys(seconds) {
  for (const key of database.jwks) key.expiresAt = new Date(Date.now() - seconds * 1000);
}

server.on("request", (request, response) => {
  const { pathname, searchParams } = new URL(request.url, address);
  if (pathname !== "/expire-keys") return answer(request, response);
  expireKeys(Number(searchParams.get("seconds")));
  response.writeHead(204).end();
});
process.stdin.on("end", () => process.exit()).resume();
console.log(address);
