import subprocess
import sys

program, data_dir = sys.argv[1:]
supervisor = subprocess.Popen([sys.executable, program, data_dir, "shim lives"], stdin=subprocess.PIPE)
supervisor.wait()
