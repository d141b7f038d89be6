-- Commits: wrk -s commit.lua URL -- TOPIC MEMBER_ID EPOCH PARTITION [MEMBER_ID EPOCH PARTITION ...]
-- The members take turns; each commits its partition, a little further every time.
local topic
local members = {}
local headers
local at = 0
local offset = 0

function init(args)
  topic = args[1]
  headers = { ["Content-Type"] = "application/json", ["Host"] = wrk.headers["Host"] }
  for i = 2, #args, 3 do
    members[#members + 1] = { args[i], args[i + 1], args[i + 2] }
  end
end

function request()
  at = at % #members + 1
  offset = offset + 1
  local member = members[at]
  local body = string.format(
    '{"offsets":[{"topic":"%s","partition":%s,"offset":%d}],"member_id":"%s","epoch":%s}',
    topic, member[3], offset, member[1], member[2])
  return wrk.format("POST", nil, headers, body)
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
