-- A POST of 600 bytes, head and body together.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-0123456789abcdef0123456789abcdef"
wrk.headers["User-Agent"] = "OpenAI/Python 1.50.0"
wrk.headers["Accept"] = "application/json"
local prefix, suffix = '{"model":"m","max_tokens":1,"prompt":"', '"}'
local head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:00000\r\nContent-Length: 000\r\n" ..
    "Content-Type: application/json\r\nAuthorization: " .. wrk.headers["Authorization"] ..
    "\r\nUser-Agent: OpenAI/Python 1.50.0\r\nAccept: application/json\r\n\r\n"
wrk.path = "/v1/completions"
wrk.body = prefix .. string.rep("p", 600 - #head - #prefix - #suffix) .. suffix
