// The official clients of the protocol in TypeScript, for agents.py: `sdk` is that for the revisions of 2025, and every other
// mode is one of the newer client. A line of the input is a call of a tool, or null for the list of tools. A line of the
// output is the result.
import { createInterface } from "node:readline";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { Client as EarlierClient } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport as EarlierTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

type Call = { name: string; arguments: Record<string, unknown> };

const [address, token, mode] = process.argv.slice(2) as [string, string, string];
const url = new URL(address);
const options = { requestInit: { headers: { Authorization: `Bearer ${token}` } } };
const agent = { name: "agent", version: "1" };

async function connectEarlier() {
  const client = new EarlierClient(agent);
  await client.connect(new EarlierTransport(url, options));
  return (call: Call | null) => (call ? client.callTool(call) : client.listTools());
}

async function connect() {
  const negotiated = mode === "legacy" || mode === "auto" ? mode : { pin: mode };
  const client = new Client(agent, { versionNegotiation: { mode: negotiated } });
  await client.connect(new StreamableHTTPClientTransport(url, options));
  return (call: Call | null) => (call ? client.callTool(call) : client.listTools());
}

const ask = await (mode === "sdk" ? connectEarlier() : connect());
for await (const line of createInterface(process.stdin)) console.log(JSON.stringify(await ask(JSON.parse(line))));
process.exit(); // without waiting for idle connections
