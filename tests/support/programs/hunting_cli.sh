#!/bin/sh
# A CLI that does what its prompt names, and nothing else.
case "$*" in *--version*) echo '2.0.0 (Claude Code)'; exit;; *--help*) exit;; esac
while [ $# -gt 1 ]; do [ "$1" != --session-id ] || id=$2; shift; done
said() { printf '{"session_id":"%s",%s}\n' "$id" "$1"; }
said '"type":"system","subtype":"init","permissionMode":"bypassPermissions","model":"m","tools":[],"cwd":"."'
script=$(sed -n 's/.*\[\[script:\([a-z]*\)\]\].*/\1/p')
sh "./$script.sh" >&2
said '"type":"result","subtype":"success","is_error":false,"result":"done","num_turns":1,"usage":{}'
