-- POSTs of events of about 200 bytes, spread over 16 streams. PREFIX and SUFFIX of the path come from the command line,
-- and how many events a request brings as NDJSON; 0: one as plain JSON.
local requests = {}
local at = 0

function init(args)
  local body = '{"user":"GELongstreet","page":"Talk:Oswald Tilghman","comment":"added project","delta":36,"added":36,'
    .. '"deleted":0,"isRobot":false,"isNew":false,"namespace":"Talk","pad":"' .. string.rep("x", 36) .. '"}'
  local kind = "application/json"
  local lines = tonumber(args[3] or "0")
  if lines > 0 then
    kind = "application/x-ndjson"
    body = string.rep(body .. "\n", lines)
  end
  for i = 1, 16 do
    requests[i] = wrk.format("POST", args[1] .. "s" .. i .. (args[2] or ""), {["Content-Type"] = kind}, body)
  end
end

function request()
  at = at % 16 + 1
  return requests[at]
end
