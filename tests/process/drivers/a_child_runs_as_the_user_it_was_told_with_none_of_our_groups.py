import json
import os

from tests.support.families import end, fork_server, lines, start

os.setgroups([4242])
child = start("sh", "-c", "id -u; id -g; id -G", user="54321")
print(json.dumps(lines(child, 3)))
end(child)
fork_server.close()
