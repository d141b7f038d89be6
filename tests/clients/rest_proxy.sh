#!/usr/bin/env bash
# Reads a topic with nothing but curl: create, subscribe, poll, commit, delete of a REST Proxy v2
# consumer. Usage: rest_proxy.sh URL TOPIC GROUP. Prints the records as the server sends them.
set -euo pipefail

url=$1 topic=$2 group=$3
v2='application/vnd.kafka.v2+json'
json='application/vnd.kafka.json.v2+json'
call() { curl -sS --fail-with-body -m 30 -H "content-type: $v2" "$@"; }

call -o /dev/null -d '{"name":"from-curl","format":"json","auto.offset.reset":"earliest",
  "auto.commit.enable":"false"}' "$url/consumers/$group"
instance="$url/consumers/$group/instances/from-curl"
call -d "{\"topics\":[\"$topic\"]}" "$instance/subscription"
call -H "accept: $json" "$instance/records?timeout=10000"
echo
call -X POST "$instance/offsets"
echo
call -X GET -d "{\"partitions\":[{\"topic\":\"$topic\",\"partition\":0}]}" "$instance/offsets"
echo
call -X DELETE "$instance"
