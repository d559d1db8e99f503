#!/bin/sh
# A CLI that says the least a run can say. It starts no process, so that a run takes a few milliseconds.
while read -r _; do :; done
mode=bypassPermissions
for word; do case $word in --permission-mode=*) mode=${word#*=} ;; esac; done
read -r id </proc/sys/kernel/random/uuid
printf '{"type":"system","subtype":"init","session_id":"%s","permissionMode":"%s"}\n' "$id" "$mode"
printf '{"type":"assistant","message":{"model":"quick","content":[{"type":"text","text":"x"}]}}\n'
printf '{"type":"result","subtype":"success","is_error":false,"result":"x","session_id":"%s"}\n' "$id"
