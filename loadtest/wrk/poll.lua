-- Polls as consumers do: wrk -s poll.lua URL -- [POLLS_IN_A_PASS BASE_PATH BASE_PATH ...]
-- Every thread is one consumer instance, in the order of the paths, and goes back to the beginning
-- before each pass. Without arguments each request is the URL itself.
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("number", threads)
end

local get
local back
local pass
local polls = 0

function init(args)
  local host = wrk.headers["Host"]
  if #args == 0 then
    get = wrk.format("GET", wrk.path, { ["Host"] = host })
    return
  end
  pass = tonumber(args[1])
  -- Twice: wrk asks the first thread for a request that it does not send.
  polls = pass + 1
  local base = args[1 + number]
  get = wrk.format("GET", base .. "/records?timeout=5000",
    { ["Host"] = host, ["Accept"] = "application/vnd.kafka.json.v2+json" })
  local partitions = {}
  for partition = 0, 7 do
    partitions[partition + 1] = string.format('{"topic":"poll","partition":%d}', partition)
  end
  back = wrk.format("POST", base .. "/positions/beginning",
    { ["Host"] = host, ["Content-Type"] = "application/vnd.kafka.v2+json" },
    '{"partitions":[' .. table.concat(partitions, ",") .. "]}")
end

function request()
  if pass and polls >= pass then
    polls = polls > pass and pass or 0
    return back
  end
  polls = polls + 1
  return get
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
