-- Writes records: wrk -s produce.lua URL -- RECORDS CONTENT_TYPE
-- The same bodies for every server: each record is 100 bytes of JSON, keys vary.
local requests = {}
local at = 0

local function record(n)
  local head = string.format('{"key":"key-%04d","value":{"n":%d,"text":"', n % 5000, 10000000 + n % 80000000)
  return head .. string.rep("x", 100 - #head - 3) .. '"}}'
end

function init(args)
  local count = tonumber(args[1])
  local headers = { ["Content-Type"] = args[2], ["Host"] = wrk.headers["Host"] }
  local n = 0
  for i = 1, math.max(64, math.floor(16384 / count)) do
    local records = {}
    for j = 1, count do
      n = n + 1
      records[j] = record(n * 7919)
    end
    local body = '{"records":[' .. table.concat(records, ",") .. "]}"
    requests[i] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
