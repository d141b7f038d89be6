-- Reads pages: wrk -s read.lua URL -- [END_OFFSET_OF_PARTITION_0 END_OFFSET_OF_PARTITION_1 ...]
-- With end offsets each request is a page of 1,000 records from a random place of the topic, as
-- NDJSON; without, it is the URL itself.
local ends = {}
local headers = {}
local path

function init(args)
  path = wrk.path
  headers = { ["Host"] = wrk.headers["Host"], ["Accept"] = "application/x-ndjson" }
  for i = 1, #args do
    ends[i] = tonumber(args[i])
  end
  math.randomseed(2013)
end

function request()
  if #ends == 0 then
    return wrk.format("GET", path, headers)
  end
  local partition = math.random(#ends)
  local offset = math.random(0, math.max(0, ends[partition] - 1000))
  local query = string.format("?partition=%d&offset=%d&limit=1000", partition - 1, offset)
  return wrk.format("GET", path .. query, headers)
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"bytes":%d,"us":%d,"p50_us":%d,"p99_us":%d,"failed":%d}\n',
    summary.requests, summary.bytes, summary.duration, latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
