-- What wrk (https://github.com/wg/wrk) sends: one operation, for users and tasks drawn from a file.
-- Arguments: the operation, and the file, which has a line per user: name, token, ids of tasks, parted by spaces; for
-- the operation `page` a line per list: path, token. The operation `call` is followed by a revision of MCP.
local requests = {}
local set = '{"completed": true}'

-- The tool `complete_task`. Clients of the revision 2026-07-28 repeat in headers and in each message what they are.
local function call(task, version, headers)
  headers.Accept = "application/json, text/event-stream"
  headers["MCP-Protocol-Version"], headers["Mcp-Method"], headers["Mcp-Name"] = version, "tools/call", "complete_task"
  local meta = '"io.modelcontextprotocol/protocolVersion": "' .. version .. '", '
    .. '"io.modelcontextprotocol/clientInfo": {"name": "wrk", "version": "4"}, '
    .. '"io.modelcontextprotocol/clientCapabilities": {}'
  local body = '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "complete_task", '
    .. '"arguments": {"task_id": "' .. task .. '", "completed": true}, "_meta": {' .. meta .. '}}}'
  return wrk.format("POST", "/mcp", headers, body)
end

function init(args)
  local operation, version = args[1]:match("(%S+) ?(%S*)")
  for line in io.lines(args[2]) do
    local words = {}
    for word in line:gmatch("%S+") do words[#words + 1] = word end
    local path = "/api/" .. words[1] .. "/tasks"
    local headers = { Accept = "application/json", Authorization = "Bearer " .. words[2], ["User-Agent"] = "wrk" }
    if operation == "page" then
      requests[#requests + 1] = wrk.format("GET", words[1], headers)
    elseif operation == "root" then
      requests[#requests + 1] = wrk.format("GET", "/", headers)
    elseif operation == "list" then
      requests[#requests + 1] = wrk.format("GET", path, headers)
    elseif operation == "create" then
      headers["Content-Type"] = "application/json"
      local body = '{"title": "Buy oat milk", "description": "The barista one"}'
      requests[#requests + 1] = wrk.format("POST", path, headers, body)
    else
      headers["Content-Type"] = operation ~= "toggle" and "application/json" or nil
      for i = 3, #words do
        local task = path .. "/" .. words[i]
        if operation == "get" then
          requests[#requests + 1] = wrk.format("GET", task, headers)
        elseif operation == "set" then
          requests[#requests + 1] = wrk.format("PATCH", task .. "/complete", headers, set)
        elseif operation == "call" then
          requests[#requests + 1] = call(words[i], version, headers)
        else
          requests[#requests + 1] = wrk.format("PATCH", task .. "/complete", headers)
        end
      end
    end
  end
  math.randomseed(7)
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f}\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50), latency:percentile(99)
  ))
end
