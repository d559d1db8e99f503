import json
import os
import sys
from pathlib import Path

from agent_runtime.process.containment.registry import new_mark
from agent_runtime.process.linux import cgroup_setup as cgroups
from tests.support.cgroup_children import Member
from tests.support.families import FAMILY

own_dir, other_dir = map(Path, sys.argv[1:])
groups = cgroups.prepare(cgroups.find())
assert groups is not None
pids = []
for data_dir, size in ((own_dir, 6), (own_dir, 1), (other_dir, 1)):
    group = groups.make(new_mark(data_dir))
    member = Member(group, FAMILY, str(size))
    pids += [int(pid) for pid in member.lines(size)]
empty = groups.make(new_mark(own_dir))
print(json.dumps([pids, str(group.directory), str(empty.directory)]), flush=True)
os._exit(0)
