import json

from tests.support.families import end, fork_server, lines, start

child = start("nice")
print(json.dumps(lines(child, 1)))
end(child)
fork_server.close()
