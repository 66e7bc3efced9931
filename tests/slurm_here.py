"A SLURM on loopback for tests: controller, accounting with a database, and two nodes, all in one folder. Needs root and Debian's slurm-wlm, slurmdbd, munge and mariadb-server."
import os, shutil, signal, socket, subprocess, time
from pathlib import Path

NEEDED = 'munged', 'mariadbd', 'slurmdbd', 'slurmctld', 'slurmd', 'sbatch', 'sacctmgr'

def missing():
    "What keeps a SLURM from being started here; '' if nothing does"
    lacks = [k for k in NEEDED if not shutil.which(k, path=os.environ.get('PATH', '') + ':/usr/sbin')]
    if lacks: return f"no {', '.join(lacks)}: apt-get install slurm-wlm slurmdbd munge mariadb-server"
    return '' if os.geteuid() == 0 else 'needs root'

def free_ports(n):
    socks = [socket.socket() for _ in range(n)]
    for s in socks: s.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in socks]
    for s in socks: s.close()
    return ports

SLURM = '''ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={p[0]}
AuthType=auth/munge
AuthInfo=socket={d}/munge/socket
CredType=cred/munge
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool-%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd-%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={p[1]}
AccountingStoragePass={d}/munge/socket
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
SlurmdTimeout=8
KillWait=5
BatchStartTimeout=10
ReturnToService=2
RequeueExit=
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={p[2]} CPUs={cpus} RealMemory=1000
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={p[3]} CPUs={cpus} RealMemory=1000
PartitionName=low Nodes=one,two Default=YES LLN=YES PriorityTier=1 GraceTime=60
PartitionName=cancel Nodes=one,two PriorityTier=1 GraceTime=5 PreemptMode=CANCEL
PartitionName=high Nodes=one,two PriorityTier=10 PreemptMode=OFF
'''
DBD = '''AuthType=auth/munge
AuthInfo=socket={d}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={p[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={p[4]}
StorageUser=slurm
StoragePass=here
StorageLoc=slurm_acct
PidFile={d}/slurmdbd.pid
LogFile={d}/slurmdbd.log
'''

class Slurm:
    "Starts everything; `stop` ends only what was started"
    def __init__(self, folder, cpus=4, warns=True): # warns: SIGUSR2 before a job is pre-empted, in place of SIGTERM alone
        self.d, self.started = Path(folder).absolute(), {}
        self.d.mkdir(parents=True, exist_ok=True)
        host, p = socket.gethostname().split('.')[0], free_ports(5)
        for name in ('state', 'munge', 'db', 'spool-one', 'spool-two'): (self.d/name).mkdir(exist_ok=True)
        (self.d/'slurm.conf').write_text(SLURM.format(d=self.d, p=p, host=host, cpus=cpus).replace('RequeueExit=\n', '')
                                         .replace('SlurmctldParameters=preempt_send_user_signal\n'*(not warns) or 'no such line', ''))
        (self.d/'slurmdbd.conf').write_text(DBD.format(d=self.d, p=p)); (self.d/'slurmdbd.conf').chmod(0o600)
        self.env = dict(os.environ, SLURM_CONF=str(self.d/'slurm.conf'), PATH=os.environ['PATH'] + ':/usr/sbin:/usr/bin')
        try:
            self.munge()
            self.database(p[4])
            self.start('slurmdbd', ['slurmdbd', '-D'])
            self.wait(['sacctmgr', '-i', 'list', 'cluster'])
            self.run('sacctmgr', '-i', 'add', 'cluster', 'here')
            self.start('slurmctld', ['slurmctld', '-D', '-c', '-i'])
            for n in ('one', 'two'): self.node(n)
            self.wait(['sh', '-c', 'test "$(sinfo -h -N -p low -t idle -o %N | wc -l)" = 2'])
        except BaseException: self.stop(); raise

    def start(self, name, words, env=None):
        log = open(self.d/f'{name}.out', 'a')
        self.started[name] = subprocess.Popen(words, env=env or self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def node(self, n): self.start(n, ['slurmd', '-D', '-N', n])

    def wait(self, words, seconds=60):
        until = time.monotonic() + seconds
        while subprocess.run(words, env=self.env, capture_output=True).returncode:
            if time.monotonic() > until: raise RuntimeError(f'{words} does not come about; see {self.d}')
            time.sleep(.5)

    def munge(self):
        key, sock = self.d/'munge'/'key', self.d/'munge'/'socket'
        key.write_bytes(os.urandom(128)); key.chmod(0o400)
        self.d.chmod(0o755); (self.d/'munge').chmod(0o755)
        words = ['munged', '-F', '-f', f'--key-file={key}', f'--socket={sock}', f'--pid-file={self.d}/munge/pid',
                 f'--log-file={self.d}/munge/log', f'--seed-file={self.d}/munge/seed', '--num-threads=10']
        self.start('munged', words)
        self.wait(['munge', '-n', '-S', str(sock)])

    def database(self, port):
        db = self.d/'db'
        subprocess.run(['mariadb-install-db', '--user=root', f'--datadir={db}', '--auth-root-authentication-method=normal'],
                       check=True, capture_output=True)
        self.start('mariadbd', ['mariadbd', '--no-defaults', '--user=root', f'--datadir={db}', f'--socket={db}/socket', f'--port={port}',
                                '--bind-address=127.0.0.1', f'--pid-file={db}/pid', '--innodb-buffer-pool-size=64M'])
        client = ['mariadb', '--no-defaults', '-u', 'root', f'--socket={db}/socket', '-e']
        self.wait([*client, 'select 1'])
        sql = "create database slurm_acct; create user 'slurm'@'127.0.0.1' identified by 'here'; grant all on slurm_acct.* to 'slurm'@'127.0.0.1'; " \
              "create user 'slurm'@'localhost' identified by 'here'; grant all on slurm_acct.* to 'slurm'@'localhost'"
        subprocess.run([*client, sql], check=True, capture_output=True)

    def run(self, *words): return subprocess.run(words, env=self.env, capture_output=True, encoding='utf-8')

    def kill(self, name):
        "Kill a daemon at once, and nothing that it has started"
        self.started[name].send_signal(signal.SIGKILL)
        self.started.pop(name).wait()

    def stop(self):
        if 'slurmctld' in self.started: self.run('scancel', '-u', 'root'); time.sleep(1)
        for name in ('one', 'two', 'slurmctld', 'slurmdbd', 'mariadbd', 'munged'):
            if p := self.started.pop(name, None):
                p.terminate()
                try: p.wait(20)
                except subprocess.TimeoutExpired: p.kill(); p.wait()
