"The locomotion worlds against gymnasium's own simulator, rewards by hand, failures, forks, machines without MuJoCo."
import importlib.util, math, os, subprocess, sys, types
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip('mujoco.batch', reason='needs MuJoCo 4')
if 'imageio' not in sys.modules and not importlib.util.find_spec('imageio'):    # gymnasium's films need it
    sys.modules['imageio'] = types.ModuleType('imageio')

from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from ldm_nb.lab import crew
from ldm_nb.core.seeds import generators
from ldm_nb.evaluation.evaluate import evaluate, outcome, summary, table
from ldm_nb.worlds.robot_tasks import DIRECTION, GOAL, RADII, SPEEDS, VELOCITY
from ldm_nb.worlds.simulator import ANT, CHEETAH, SKIP, Pools, engine, load, parts, quiet_mujoco, simulate, start
from ldm_nb.worlds.robots import ant_direction, ant_goal, cheetah_velocity, reward_goal, see_goal
from ldm_nb.policy.policy import Agent
from ldm_nb.training.rollout import rollout

MADE = dict(dir=ant_direction(), goal=ant_goal(), vel=cheetah_velocity())
BODY = dict(dir=ANT, goal=ANT, vel=CHEETAH)

def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def theirs(body, state):
    "Gymnasium's environment in the same state"
    with quiet_mujoco(engine()): env = (AntEnv if body is ANT else HalfCheetahEnv)(reset_noise_scale=0.)
    env.reset(seed=0)
    p = parts(body, state)
    env.set_state(p.qpos[0, 0].numpy(), p.qvel[0, 0].numpy())
    return env

def agent(act): return Agent(lambda B, noise=None: None, lambda h, obs, u: (act(obs), torch.zeros(obs.shape[:2])), lambda *_: None)

def still(A): return agent(lambda obs: torch.zeros(*obs.shape[:2], A))


# The right physics

T = torch.arange(200.)[:, None]
SCRIPTS = dict(
    random=lambda A: randn(200, A), weak=lambda A: .1*randn(200, A, seed=1), strong=lambda A: 5*randn(200, A, seed=2),
    gait=lambda A: torch.sin(.4*T + torch.arange(A)), bang=lambda A: 2*((T//7 + torch.arange(A)) % 2) - 1,
    still=lambda A: torch.zeros(200, A))

@pytest.mark.parametrize('body', [ANT, CHEETAH], ids=lambda b: b.file)
@pytest.mark.parametrize('script', SCRIPTS)
def test_gymnasium(body, script):
    "200 steps of gymnasium's simulator and ours, from the same noisy start, with the same actions"
    state = start(body, False, torch.zeros(1, 1, 1), rand(1, 1, body.nq + body.nv, seed=len(script)))
    env, went = theirs(body, state), 0
    for a in SCRIPTS[script](body.motors):
        after, failed = simulate(body, state, a[None, None])
        env.do_simulation(a.double().numpy(), SKIP)
        p, d = parts(body, after), env.data
        for x, y in ((p.qpos, d.qpos), (p.qvel, d.qvel), (p.torso, d.body('torso').xpos)):
            assert abs(x[0, 0].numpy() - y).max() < 1e-9
        went, state = went + (after - state)[0, 0, 0].abs(), after
        assert not failed.any()
    assert went > .5 or script in ('still', 'weak')

def by_hand(name, task, before, after, a):
    "A reward in plain Python, from what gymnasium's data say"
    if name == 'vel': return -abs((after['qpos'][0] - before['qpos'][0])/.05 - task[0]) - .05*sum(x*x for x in a)
    (x0, y0, _), (x1, y1, _) = before['torso'], after['torso']
    if name == 'goal': return -abs(x1 - task[0]) - abs(y1 - task[1]) - .1*sum(x*x for x in a)
    forward = (x1 - x0)/.05*math.cos(task[0]) + (y1 - y0)/.05*math.sin(task[0])
    return forward - .5*sum(x*x for x in a) + 1

def numbers(env):
    d = env.data
    return dict(qpos=d.qpos.tolist(), qvel=d.qvel.tolist(), torso=d.body('torso').xpos.tolist())

@pytest.mark.parametrize('name', MADE)
def test_reward(name):
    "Rewards, observations and deaths, step for step, until the ant dies or an episode is over"
    world, body = MADE[name], BODY[name]
    task = world.family.splits['test'].tasks[-1]
    state = world.start(task[None, None], rand(1, 1, world.reset_noise))
    env = theirs(body, state)
    for t, a in enumerate(1.2*randn(200, body.motors, seed=5)):
        was = numbers(env)
        state, reward, died = world.step(state, task[None, None], a[None, None])
        env.do_simulation(a.double().numpy(), 5)
        now = numbers(env)
        want = by_hand(name, task.tolist(), was, now, a.tolist())
        assert reward.dtype == torch.float32 and reward.item() == pytest.approx(want, abs=1e-5)
        q, v = now['qpos'], now['qvel']
        obs = dict(dir=q[2:] + v, goal=q + v + [0]*84, vel=q[1:] + v + now['torso'])[name]
        assert torch.equal(world.observe(state)[0, 0], torch.tensor(obs).float())
        assert died.item() == (name == 'dir' and not .2 <= q[2] <= 1)
        if died: break
    assert (t < 199) == (name == 'dir')   # with this noise the ant jumps too high

def test_constants():
    for name, dims in dict(dir=(27, 8), goal=(113, 8), vel=(20, 6)).items():
        w = MADE[name]
        assert (w.obs_dim, w.action_dim, w.n_actions, w.horizon, w.episodes, w.steps) == (*dims, 0, 200, 2, 400)
        assert w.rewards.kind == 'real' and w.goal.reached is None and w.goal.ceiling is None and w.map is None and w.n_cells == 0
        assert torch.equal(w.rewards.target(torch.tensor([1.5])), w.rewards.imagine(torch.tensor([1.5])))
    assert [load(b).body_mass.sum() for b in (ANT, CHEETAH)] == pytest.approx([.911, 14], abs=1e-3)

@pytest.mark.parametrize('name,want', dict(dir=200, goal=-350, vel=-350).items())
def test_standing_still(name, want):
    "Over the test tasks and both episodes, without noise at the start and with it: then bodies first settle"
    world = MADE[name]
    for gens, near in ((None, .3), (generators([0, 1])['eval'], dict(dir=5, goal=60, vel=3)[name])):
        traj = evaluate(world, still(world.action_dim), gens, 'test', seeds=1)
        returns = outcome(world, traj)['returns']
        assert returns.shape[1:] == (len(world.family.splits['test'].tasks), 2)
        assert abs(returns.mean() - want) < near and not world.simulator.lost(traj.after, traj.end).any()


# Contact forces

def test_contacts():
    "The forces of the beginning of the last substep, as MuJoCo itself computes them; the motion is the same without"
    mujoco, m = engine(), load(ANT)
    d, state = mujoco.MjData(m), start(ANT, True, torch.zeros(1, 1, 1))
    plain = start(ANT, False, torch.zeros(1, 1, 1))
    d.qpos[:], seen = ANT.rest, 0
    for a in randn(60, 8):
        state, _ = simulate(ANT, state, a[None, None])
        plain, _ = simulate(ANT, plain, a[None, None])
        d.ctrl[:] = a.double().numpy()
        mujoco.mj_step(m, d, 4)
        last = mujoco.MjData(m)
        for k in ('qpos', 'qvel', 'qacc_warmstart', 'ctrl'): getattr(last, k)[:] = getattr(d, k)
        mujoco.mj_forward(m, last)
        mujoco.mj_rnePostConstraint(m, last)
        mujoco.mj_step(m, d)
        p = parts(ANT, state)
        assert abs(p.force[0, 0].numpy().reshape(14, 6) - last.cfrc_ext).max() < 1e-9
        assert torch.equal(state[..., :46], plain)
        seen += p.force.any().item()
        obs = see_goal(state)[0, 0, 29:]
        assert torch.equal(obs, p.force[0, 0].clamp(-1, 1).float())
        charged = reward_goal(torch.zeros(1, 1, 2), state, a[None, None], state)
        free = reward_goal(torch.zeros(1, 1, 2), plain, a[None, None], plain)
        assert (free - charged).item() == pytest.approx(.0005*(p.force.clamp(-1, 1)**2).sum().item(), abs=1e-12)
    assert 5 < seen < 55


# The same in any company

@pytest.mark.parametrize('name', MADE)
def test_company(name):
    "State, reward, observation and death of seed 1, worker 2: alone and among 12, on one thread and on three"
    world, body = MADE[name], BODY[name]
    u, acts = rand(3, 4, world.reset_noise), randn(15, 3, 4, body.motors)
    task = world.family.splits['train'].sample(rand(3, 4, world.family.splits['train'].noise))
    def go(s, b, threads=1):
        torch.set_num_threads(threads)
        state, seen = world.start(task[s, b], u[s, b]), []
        for a in acts:
            state, reward, died = world.step(state, task[s, b], a[s, b])
            seen.append((state, reward, died, world.observe(state)))
        torch.set_num_threads(1)
        return [torch.stack(x) for x in zip(*seen)]
    every, one = slice(None), (slice(1, 2), slice(2, 3))
    company = go(every, every)
    for x, y, z in zip(company, go(every, every, threads=3), go(*one)):
        assert torch.equal(x, y) and torch.equal(x[:, 1:2, 2:3], z)

CHILD = '''
import sys, torch
from ldm_nb.worlds.simulator import ANT, simulate
d = torch.load(sys.argv[1])
for a in d['acts']: d['state'] = simulate(ANT, d['state'], a)[0]
torch.save(d, sys.argv[1])
'''

def test_resume(tmp_path):
    "A state written to disk goes on in another process, bit for bit"
    state, acts, f = start(ANT, False, torch.zeros(2, 3, 1), rand(2, 3, 29)), randn(20, 2, 3, 8), tmp_path/'state.pt'
    for a in acts[:10]: state, _ = simulate(ANT, state, a)
    torch.save(dict(state=state, acts=acts[10:]), f)
    subprocess.run([sys.executable, '-c', CHILD, str(f)], check=True)
    for a in acts[10:]: state, _ = simulate(ANT, state, a)
    assert torch.equal(torch.load(f)['state'], state)

def test_fork():
    "A forked process steps to the same state with threads of its own, and ends although it inherited a pool"
    state, a = start(ANT, False, torch.zeros(1, 4, 1), rand(1, 4, 29)), randn(1, 4, 8)
    pools = Pools()
    want = simulate(ANT, state, a, 2, pools)[0]
    code = 'from ldm_nb.worlds import simulator as l; from ldm_nb.lab import crew; import torch, os, sys\n' \
           's, a, p = l.start(l.ANT, False, torch.zeros(1, 4, 1)), torch.zeros(1, 4, 8), l.Pools()\n' \
           'want = l.simulate(l.ANT, s, a, 2, p)[0]\n' \
           'pid = os.fork()\n' \
           'if not pid: sys.exit(0 if torch.equal(l.simulate(l.ANT, s, a, 2, p)[0], want) else 3)\n' \
           'sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))'
    assert subprocess.run([sys.executable, '-c', code], timeout=60).returncode == 0
    line, process = crew.start_process(lambda word: (simulate(ANT, state, a, 2, pools)[0], len(pools.idle)))
    line.send('go')
    got, idle = line.recv()
    line.close()
    process.join(20)
    assert torch.equal(got, want) and idle == len(pools.idle) == 1 and process.exitcode == 0


# Tasks

@pytest.mark.parametrize('family', [DIRECTION, GOAL, VELOCITY], ids=lambda f: f.name)
def test_splits(family):
    "What is drawn belongs to its split and to no other, at the ends of the noise too; fixed lists likewise"
    for name, other in (('train', 'test'), ('test', 'train')):
        s = family.splits[name]
        u = rand(300_000, s.noise, seed=3)
        u[:1000] *= 2e-6
        u[1000:2000] = 1 - u[1000:2000]*2e-6
        x = s.sample(u)
        assert x.shape == (300_000, len(family.columns)) and x.dtype == torch.float32
        for tasks in (x, s.tasks):
            assert s.contains(tasks).all() and family.splits['all'].contains(tasks).all()
            assert not family.splits[other].contains(tasks).any()
    x = family.splits['all'].sample(rand(300_000, family.splits['all'].noise))
    train, test = (family.splits[k].contains(x) for k in ('train', 'test'))
    assert (train ^ test).all()
    share = {'ant-dir': .5, 'ant-goal': (1 + 9 - 6.25)/9, 'cheetah-vel': 1/3.5}[family.name]
    assert train.float().mean().item() == pytest.approx(share, abs=.004)   # 4 standard errors

def test_distributions():
    "Histograms of 200,000 draws: equal shares in bins of equal length or area, chi-squared below its 99.9 % point"
    def flat(x, edges):
        n = np.histogram(x.double().numpy(), edges)[0]
        e = n.sum()/len(n)
        assert n.sum() == len(x) and ((n - e)**2/e).sum() < {4: 16.3, 8: 24.4, 10: 27.9, 20: 43.9}[len(n)]
    u = rand(200_000, 2, seed=8)
    for name, pieces in SPEEDS.items():
        v = VELOCITY.splits[name].sample(u[:, :1])[:, 0]
        for a, b in pieces: flat(v[(v >= a) & (v < b)], np.linspace(a, b, 11))
    v = VELOCITY.splits['train'].sample(u[:, :1])[:, 0]
    assert (v < 1).float().mean().item() == pytest.approx(.5, abs=.005)
    for name, pieces in RADII.items():
        g = GOAL.splits[name].sample(u).double()
        r, way = g.norm(dim=1), torch.atan2(g[:, 1], g[:, 0])
        for a, b in pieces: flat(r[(r >= a) & (r < b)]**2, np.linspace(a*a, b*b, 11))
        flat(way, np.linspace(-math.pi, math.pi, 21))
    assert (GOAL.splits['train'].sample(u).norm(dim=1) < 1).float().mean().item() == pytest.approx(4/15, abs=.004)
    for name, k in (('train', 4), ('test', 4), ('all', 8)):
        x = DIRECTION.splits[name].sample(u[:, :1])[:, 0]
        flat(x, np.linspace(0, 2*math.pi, k + 1) - .01)

def test_lists():
    "The release's evaluation lists, in its order"
    assert (DIRECTION.splits['eval'].tasks[:, 0]*4/math.pi).round().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert GOAL.splits['eval'].tasks.norm(dim=1).tolist() == [.5]*4 + [1.75]*4 + [2.75]*4
    assert GOAL.splits['test'].tasks.tolist() == [[1.75, 0], [0, 1.75], [-1.75, 0], [0, -1.75]]
    assert VELOCITY.splits['eval'].tasks[:, 0].tolist() == [.25, 3.25, .75, 1.25, 1.75, 2.25, 2.75]

def test_start():
    "Uniform positions, normal velocities, exact in any company"
    u = rand(2, 50_000, 18)
    p = parts(CHEETAH, start(CHEETAH, False, u[..., :1], u))
    assert p.qpos.abs().max() <= .1 and p.qpos.std().item() == pytest.approx(.2/12**.5, rel=.01)
    z = p.qvel.flatten().sort()[0]/.1
    at = torch.tensor([.025, .16, .5, .84, .975])
    want = torch.distributions.Normal(0., 1.).icdf(at)
    assert abs(z[(at*len(z)).long()] - want).max() < .01
    assert torch.equal(p.torso, torch.stack([p.qpos[..., 0], 0*p.qpos[..., 0], p.qpos[..., 1] + .7], -1))
    assert torch.equal(start(CHEETAH, False, u[1:, 7:9, :1], u[1:, 7:9]), start(CHEETAH, False, u[..., :1], u)[1:, 7:9])


# Whole tasks

def test_rollout():
    "Ants that act at random die in the first episode, start again, and end their task early"
    world = ant_direction()
    task = world.family.splits['train'].sample(rand(1, 6, 1))
    noise = iter(randn(400, 1, 6, 8))
    act = agent(lambda obs: next(noise, torch.zeros(1, 6, 8)))
    traj = rollout(world, act, task, rand(1, 400, 6), rand(1, 401, 6, 29))
    first = traj.end.float().argmax(1)
    assert (first < 199).float().mean() > .5 and traj.done.any(1).all() and traj.after.isfinite().all()
    assert torch.equal(traj.after[..., -1] == 1, traj.end)
    early = first[0].argmin()
    z = traj.after[0, first[0, early], early, 0]
    assert not .2 <= z <= 1 and not world.simulator.lost(traj.after, traj.end).any()

def test_lost():
    "A worker whose physics fail ends its episode, is reset and counted; nobody else sees anything of it"
    for name, world in MADE.items():
        A, n = world.action_dim, [0]
        def step(state, task, action, world=world):
            n[0] += 1
            if n[0] == 31: action = torch.cat([action[:, :1] + torch.nan, action[:, 1:]], 1)
            return world.step(state, task, action)
        task = world.family.splits['test'].tasks[None, :3]
        u, reset = torch.zeros(1, 60, 3), rand(1, 61, 3, world.reset_noise)
        well = rollout(world, still(A), task, u, reset)
        ill = rollout(replace(world, step=step), still(A), task, u, reset)
        assert world.simulator.lost(ill.obs[:, 1:], ill.end).nonzero().tolist() == [[0, 30, 0]] and ill.end[0, 30, 0]
        assert torch.equal(well.obs[:, :, 1:], ill.obs[:, :, 1:]) and not well.end.any()

def test_failed_state():
    "Whatever breaks a simulation, its state stays the one before, and no file is written"
    state = start(CHEETAH, False, torch.zeros(1, 5, 1), rand(1, 5, 18))
    act = randn(1, 5, 6)
    want, _ = simulate(CHEETAH, state, act)
    ill, bad = state.clone(), act.clone()
    ill[0, 1, 3], ill[0, 2, 12], bad[0, 3, 0] = 1e11, math.inf, math.nan
    after, failed = simulate(CHEETAH, ill, bad)
    assert failed[0].tolist() == [False, True, True, True, False] and not os.path.exists('MUJOCO_LOG.TXT')
    assert torch.equal(after[0, [0, 4]], want[0, [0, 4]]) and torch.equal(after[0, 1:4], ill[0, 1:4])
    again, failed = simulate(CHEETAH, state, act)
    assert torch.equal(again, want) and not failed.any()

def test_summary():
    "Without goals to reach, a summary has returns only"
    world = cheetah_velocity()
    rows = summary(world, out := outcome(world, evaluate(world, still(6), generators([0])['eval'])))
    assert list(rows[0]) == ['train', 'first_train', 'test', 'first_test'] and abs(rows[0]['test'] + 350) < 5
    assert 'goals' not in table(world, out, 'still')

@pytest.mark.parametrize('world', [*MADE.values(), ant_goal(contact_forces=True)], ids=[*MADE, 'contacts'])
def test_pack(world):
    "A task comes back from the buffer as it went in"
    A, T = world.action_dim, world.steps
    obs, action, reward = randn(2, T + 1, 3, world.obs_dim + 1), randn(2, T, 3, A), randn(2, T, 3)
    if world.obs_dim == 113 and world.codec.code_bytes < 1e5: obs[..., 29:113] = 0
    valid = (torch.arange(T) < 350)[None, :, None].expand(2, T, 3)
    code = world.codec.pack(obs, action, reward, valid, None)
    assert code.dtype == torch.uint8 and code.shape == (2, 3, world.codec.code_bytes)
    back = world.codec.unpack(code[:, [2, 0]])
    for x, y in zip((torch.cat([back.first[:, None], back.after], 1), *back[2:]), (obs, action, reward, valid)):
        assert torch.equal(x, y[:, :, [2, 0]])


# What can be wrong outside

def test_bad_shape():
    state = start(ANT, False, torch.zeros(2, 3, 1))
    for shape in ((2, 3, 6), (2, 8), (6, 8), (2, 3)):
        with pytest.raises(ValueError, match='workers act with 8 numbers'): simulate(ANT, state, torch.zeros(shape))

def test_bad_model(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.xml is missing; it comes with gymnasium'):
        load(replace(ANT, file='nowhere.xml'))
    (tmp_path/'torn.xml').write_text('<mujoco><worldbody>')
    with pytest.raises(ValueError, match='torn.xml: MuJoCo cannot load this model'):
        load(replace(ANT, file=str(tmp_path/'torn.xml')))

WITHOUT = '''
import sys, types
sys.modules["mujoco"] = {}
import torch, gymnasium, ldm_nb.lab.cli, ldm_nb.worlds.envs, ldm_nb.worlds.simulator as l
from ldm_nb.core.errors import Unable
from ldm_nb.worlds.robots import ant_goal
def version(name):
    if {!r} is None: raise l.PackageNotFoundError(name)
    return {!r}
l.version = version
env = gymnasium.make("ldm_nb/Gridworld-v0"); env.reset(seed=0); env.step(1)
w = ant_goal()
s = w.start(torch.zeros(1, 1, 2), torch.rand(1, 1, 29))
try: w.step(s, torch.zeros(1, 1, 2), torch.zeros(1, 1, 8))
except Unable as e: print(e)
'''

@pytest.mark.parametrize('fake,installed,message', [
    ('None', None, "need MuJoCo 4.0 or newer, and it is not installed: pip install --upgrade 'mujoco>=4'"),
    ('types.ModuleType("mujoco")', '3.3.2', "version 3.3.2 is installed: pip install --upgrade 'mujoco>=4'"),
    pytest.param('types.ModuleType("mujoco")', '4.0.0', "MuJoCo 4.0.0 is installed, but cannot be imported: No module named 'mujoco.batch'",
                 marks=pytest.mark.slow)], ids=['missing', 'old', 'broken'])
def test_without_mujoco(fake, installed, message):
    "Gridworlds never ask for it; the others say what to install"
    out = subprocess.run([sys.executable, '-c', WITHOUT.format(fake, installed, installed)], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert message in out

def test_lazy():
    code = 'import sys, ldm_nb.lab.cli, ldm_nb.worlds.envs, ldm_nb.worlds.robots; sys.exit("mujoco" in sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)
