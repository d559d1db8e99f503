import json
import signal

from tests.support.families import end, fork_server, lines, start

for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGXFSZ):  # as nohup, a shell or Python itself does
    signal.signal(number, signal.SIG_IGN)
child = start("grep", "SigIgn", "/proc/self/status")
ignored = int(lines(child, 1)[1], 16)
end(child)
fork_server.close()
print(json.dumps([number for number in range(1, 65) if ignored >> number - 1 & 1]))
