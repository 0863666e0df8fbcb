-- POSTs of about 600 bytes, head and body together: one of 16 prompts' beginnings, then an end of its own. `stream` as an
-- argument asks for a streamed answer. usage: wrk ... -s load.lua URL -- [stream]
local words = {"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"}
local prefixes = {}
local n = 0
local stream = "false"

function init(args)
  if args[1] == "stream" then stream = "true" end
  for i = 1, 16 do
    local text = {}
    for j = 1, 28 do text[j] = words[(i * j + j) % #words + 1] end
    prefixes[i] = string.sub(i .. " " .. table.concat(text, " "), 1, 150)
  end
  math.randomseed(7)
end

function request()
  n = n + 1
  local body = string.format('{"model":"sim-model","max_tokens":100,"stream":%s,"messages":[{"role":"user","content":"%s %08d %08d"}]}',
                             stream, prefixes[n % 16 + 1], n, math.random(0, 99999999))
  return wrk.format("POST", "/v1/chat/completions",
                    {["Content-Type"] = "application/json", ["Accept"] = "application/json",
                     ["Authorization"] = "Bearer sk-0123456789abcdef0123456789abcdef", ["User-Agent"] = "OpenAI/Python 1.50.0"},
                    body)
end
