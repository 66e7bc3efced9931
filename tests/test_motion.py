"Robots watched, drawn and filmed: states that fit rewards, early ends, machines without OpenGL, MuJoCo or ffmpeg, and `ldm render`."
import math, os, subprocess, sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

pytest.importorskip('mujoco.batch', reason='needs MuJoCo 4')

from ldm_nb.lab import cli, jobs
from ldm_nb.worlds import film as f
from ldm_nb.evaluation import motion as m
from ldm_nb.lab.cli import main
from ldm_nb.worlds.gridworld import gridworld
from ldm_nb.worlds.simulator import ANT, CHEETAH, load, parts
from ldm_nb.worlds.robots import ant_direction, ant_goal, cheetah_velocity
from ldm_nb.worlds.film import camera
from ldm_nb.evaluation.motion import episode, film, episode_returns, view, watch
from ldm_nb.policy.policy import Agent
from ldm_nb.core.errors import Unable
from ldm_nb.training.rollout import rollout

MADE = dict(dir=ant_direction(), goal=ant_goal(), vel=cheetah_velocity(), contacts=ant_goal(contact_forces=True))

@pytest.fixture
def gl():
    f.backend.cache_clear()
    try: return f.backend()
    except Unable as e: pytest.skip(str(e))

def flail(world, strength=1.):
    "Random torques, the same at each call"
    def act(t, obs, u):
        a = torch.randn(world.action_dim, generator=torch.Generator().manual_seed(t))
        return (strength*a).expand(*obs.shape[:2], -1), u
    return Agent(lambda B, noise=None: 0, act, lambda t, *_: t + 1)

def watched(world, K=3, S=1, strength=1.):
    tasks = world.family.splits['eval'].tasks[:K].expand(S, -1, -1)
    return watch(world, flail(world, strength), tasks, m.resets(world, list(range(S)), K))


# What is kept

@pytest.mark.parametrize('world', MADE.values(), ids=MADE)
def test_watch(world):
    "The rewards of a rollout with the same noise, and those that the states themselves give"
    x = watched(world, S=2)
    tasks = x.task
    noise = m.resets(world, [0, 1], 3)
    traj = rollout(world, flail(world), tasks, torch.zeros(2, world.steps, 3), noise)
    assert torch.equal(x.reward, traj.reward) and torch.equal(x.end, traj.end) and torch.equal(x.action, traj.action)
    for t in (0, 7, 199, 200, 399):
        after, reward, _ = world.step(x.before[:, t], tasks, x.action[:, t])
        assert torch.equal(after, x.after[:, t]) and torch.equal(reward, x.reward[:, t])
    assert torch.equal(x.before[:, 0], world.start(tasks, noise[:, 0]))
    end, fresh = x.end[:, :-1], (x.before[:, 1:] != x.after[:, :-1]).any(-1)
    assert torch.equal(end, fresh)

def test_early_ends():
    "Ants that die have short episodes; what they do after the task is in none"
    world = MADE['dir']
    x = watched(world, K=4)
    for b in range(4):
        lengths = [len(episode(x, k, b)) - 1 for k in range(2)]
        assert max(lengths) <= 200 and min(lengths) > 0
        first = x.end[0, :, b].nonzero()[0, 0].item() + 1
        assert lengths[0] == first
        z = parts(ANT, episode(x, 0, b)).qpos[:, 2]
        assert first == 200 or not .2 <= z[-1] <= 1
        assert episode_returns(x, 2, b)[0] == pytest.approx(x.reward[0, :first, b].sum().item(), abs=1e-3)
        assert torch.equal(episode(x, 1, b)[0], x.before[0, first, b])
    assert any((x.episode[0, :, b] > 1).any() for b in range(4))

def test_gridworld():
    "Worlds without reset noise are watched just so"
    world = gridworld()
    up = Agent(lambda B, noise=None: None, lambda h, obs, u: (torch.ones(u.shape).long(), u), lambda *_: None)
    x = watch(world, up, torch.tensor([[[0., 3.]]]), m.resets(world, [0], 1))
    assert [episode(x, k)[-1, :2].tolist() for k in range(4)] == [[0, 6]]*4

def test_resets():
    assert m.resets(gridworld(), [3], 5) is None
    a, b = m.resets(MADE['vel'], [3, 7], 2), m.resets(MADE['vel'], [7], 2)
    assert torch.equal(a[1:], b) and a.shape == (2, 401, 2, 18)


# Pictures

@pytest.mark.parametrize('world', [MADE[k] for k in ('dir', 'goal', 'vel')], ids=['dir', 'goal', 'vel'])
def test_figures(world, tmp_path):
    "A panel for each split or task, the targets in them, no matter how few tasks there are and how short the episodes"
    for K in (1, len(world.family.splits['eval'].tasks)):
        x = watched(world, K, strength=.2)
        fig = view(world).figure(world, x, 'title')
        assert isinstance(fig, Figure) and fig.get_suptitle() == 'title'
        fig.savefig(tmp_path/'x.png')
        for ax in fig.axes: assert not ax.lines or ax.get_title() and (ax.get_aspect() == 1) == (view(world).body is ANT)

def test_speeds():
    "A known velocity is drawn where it is"
    world = MADE['vel']
    x = watched(world, 2)
    still = x._replace(before=x.before.clone(), after=x.after.clone())
    t = torch.arange(200.).double().repeat(2)[None, :, None]
    still.before[..., 0], still.after[..., 0] = .05*2*t, .05*2*(t + 1)
    assert torch.allclose(m.velocity(CHEETAH, episode(still, 1)), torch.full((200,), 2.).double())
    ax = view(world).figure(world, still).axes[0]
    assert np.allclose(ax.lines[2].get_ydata(), 2) and ax.lines[3].get_ydata()[0] == .25 and ax.get_title().startswith('train, 0.25 m/s')

@pytest.mark.parametrize('task', [0, .785398, math.pi/2, -2.])
def test_direction_marks(task):
    rods, words = f.mark_direction(np.array([task]), np.array([[1., 2., .6]]))
    d = np.subtract(rods[0].b, rods[0].a)
    assert math.isclose(math.atan2(d[1], d[0]), task, abs_tol=1e-6) and f'{math.degrees(task):.0f} degrees' in words

def test_a_finished_run_draws_them(tmp_path, monkeypatch):
    "motion.png beside the curves, one of the stack's first seed"
    world = MADE['vel']
    monkeypatch.setattr(jobs, 'measured', lambda folder: {3: [{}]}); monkeypatch.setattr(jobs, 'run_records', lambda *a: None)
    monkeypatch.setattr(jobs, 'draw_curves', lambda *a: Figure())
    script = SimpleNamespace(agent=lambda cfg, state, greedy: flail(world), network=None, mixtures=None, test_episodes=None)
    info = dict(world='cheetah-vel', method='script', device='cpu')
    job = jobs.Job(tmp_path, info, world, script, None, None, SimpleNamespace(seeds=[3, 7], state=None))
    assert [f.name for f in jobs.pictures(job)] == ['curves.png', 'motion.png']
    assert (tmp_path/'motion.png').stat().st_size > 20_000


# Films

@pytest.mark.parametrize('name', ['egl', 'osmesa'])
def test_backends(name, tmp_path):
    "Each way to OpenGL alone, in a process that imported MuJoCo without it"
    code = ('import mujoco, torch; from ldm_nb.worlds.film import *; from ldm_nb.worlds.robots import ant_goal; from ldm_nb.worlds.simulator import *; from ldm_nb.core.errors import Unable\n'
            'try: print("uses", backend())\nexcept Unable as e: print(e); raise SystemExit\n'
            's = start(ANT, False, torch.zeros(1, 1, 2))[0]\n'
            'x, = shots(camera(ant_goal()), torch.tensor([1., 0.]), s)\n'
            'print(x.shape, int(x.max()) - int(x.min()) > 100)')
    env = dict(os.environ, MUJOCO_GL=name)
    r = subprocess.run([sys.executable, '-c', 'import os; os.environ.pop("MUJOCO_GL"); import mujoco\n'
                        f'os.environ["MUJOCO_GL"] = {name!r}\n{code}'], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    if 'does not work here' in r.stdout: pytest.skip(r.stdout.strip())
    assert f'uses {name}' in r.stdout and '(360, 480, 3) True' in r.stdout

def red(image): return ((image[..., 0] > 120) & (image[..., 1] < 60) & (image[..., 2] < 60))

def test_goal_is_seen(gl):
    "A goal to the right is red on the right of the picture, one to the left on the left, one far away nowhere"
    states = episode(watched(MADE['goal'], 1), 0)[:1]
    def columns(x, y):
        image, = m.shots(camera(MADE['goal']), torch.tensor([x, y]), states)
        return red(image).nonzero()[1]
    right, left = columns(1.5, 0.), columns(-1.5, 0.)
    assert len(right) > 50 and right.min() > 240 and len(left) > 50 and left.max() < 240 and len(columns(0., -30.)) == 0

@pytest.mark.parametrize('world', [MADE[k] for k in ('dir', 'contacts', 'vel')], ids=['dir', 'contacts', 'vel'])
def test_film(gl, world, tmp_path):
    "Twenty pictures a second; what is simulated does not change with what was filmed"
    x = watched(world, 1)
    film(world, x.task[0, 0], episode(x, 1)[:5], tmp_path/'film.gif', 'note')
    with Image.open(tmp_path/'film.gif') as gif: assert (gif.n_frames, gif.size, gif.info['duration']) == (5, (480, 360), 50)
    assert [p.name for p in tmp_path.iterdir()] == ['film.gif']
    assert torch.equal(watched(world, 1).after, x.after)

def test_looks_only():
    "The stage is the same body"
    for body in (ANT, CHEETAH):
        a, b = load(body), f.stage(body)
        for k in ('body_mass', 'body_inertia', 'geom_size', 'geom_friction', 'jnt_range', 'dof_damping', 'actuator_gear'):
            assert np.array_equal(getattr(a, k), getattr(b, k)), k
        assert a.mat('MatPlane').reflectance == .5 and a.light_diffuse[0, 0] == 1

def test_mp4(tmp_path):
    try: m.ffmpeg()
    except Unable as e: pytest.skip(str(e))
    m.write_mp4([np.full((36, 48, 3), 10*i, np.uint8) for i in range(20)], 20, tmp_path/'x.mp4')
    assert b'ftyp' in (tmp_path/'x.mp4').read_bytes()[:16]

def test_failing_ffmpeg(tmp_path, monkeypatch):
    "What ffmpeg says is passed on"
    (tmp_path/'ffmpeg').write_text('#!/bin/sh\ncat > /dev/null\necho no such codec >&2\nexit 1\n')
    (tmp_path/'ffmpeg').chmod(0o755)
    monkeypatch.setenv('PATH', f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unable, match='ffmpeg failed: no such codec'): m.write_mp4([np.zeros((4, 4, 3), np.uint8)], 20, tmp_path/'x.mp4')


# The command

def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    out = capsys.readouterr()
    assert 'Traceback' not in out.err
    return e.value.code, out.out, out.err

@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run folder of a cheetah whose agent is a script"
    world = MADE['vel']
    folder = tmp_path/'run'
    folder.mkdir()
    monkeypatch.setattr(cli, 'assemble', lambda *a, **k: SimpleNamespace(world=world, tested=world, info=dict(seeds=[3, 7], method='script')))
    monkeypatch.setattr(cli, 'load', lambda folder, seed: (world, flail(world, .1*seed)))
    return folder

def test_render(gl, run, capsys, monkeypatch):
    "Task, seed and episode as asked; by default the first test task, the first seed, the last episode"
    drawn = []
    def brief(view, task, states, note): drawn.append((task.tolist(), len(states), note)); return short(view, task, states[:2], note=note)
    short = m.shots
    monkeypatch.setattr(m, 'shots', brief)
    code, out, err = ldm(capsys, 'render', run)
    assert code == 0, err
    assert drawn == [([.75], 201, 'script, seed 3, episode 2 of 2')] and 'film.gif: task 0.75; returns of its episodes: -' in out
    assert (run/'film.gif').stat().st_size > 5000
    code, _, err = ldm(capsys, 'render', run, '--task', '2.5', '--seed', '7', '--episode', '1', '--out', run/'b.GIF')
    assert code == 0 and drawn[1] == ([2.5], 201, 'script, seed 7, episode 1 of 2') and (run/'b.GIF').exists(), err

@pytest.mark.parametrize('option,value,said', [
    ('task', 'fast', 'velocity (m/s)'), ('task', '1,2', '1 numbers'), ('task', '-1', 'no task [-1.0]'), ('task', 'nan', 'commas'),
    ('task', '1e400', 'commas'), ('episode', '3', 'episode is 3: allowed is 1 to 2'), ('episode', '-1', 'allowed is 1 to 2'),
    ('episode', 'x', 'episode'), ('seed', 'x', 'seed'), ('out', 'film.avi', 'must end in .gif or .mp4'), ('out', 'nowhere/film.gif', 'no folder nowhere')])
def test_bad_input(option, value, said, run, capsys):
    code, out, err = ldm(capsys, 'render', run, f'--{option}={value}')
    assert code == 2 and said in err and not out and not list(run.iterdir()), err

def test_no_run(tmp_path, capsys):
    code, _, err = ldm(capsys, 'render', tmp_path)
    assert code == 2 and 'is not a run folder' in err

def test_without_opengl(run, capsys, monkeypatch):
    "No library can be loaded: status 1, and what to install"
    f.backend.cache_clear()
    monkeypatch.setenv('PYOPENGL_PLATFORM', 'none')     # which MuJoCo refuses, as if the library were missing
    monkeypatch.setattr(f, 'GL', ('egl', 'osmesa'))
    code, out, err = ldm(capsys, 'render', run)
    f.backend.cache_clear()
    assert code == 1 and not out and len(err.splitlines()) == 1 and not list(run.iterdir())
    assert 'no OpenGL works here (tried: egl, osmesa)' in err and 'sudo apt install libegl1, or libosmesa6' in err

def test_without_ffmpeg(run, capsys, monkeypatch):
    monkeypatch.setattr(m, 'backend', lambda: 'egl')
    monkeypatch.setattr(m.shutil, 'which', lambda name: None)
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    code, out, err = ldm(capsys, 'render', run, '--out', run/'film.mp4')
    assert code == 1 and 'pip install imageio-ffmpeg' in err and not list(run.iterdir())

def test_without_mujoco(run, capsys, monkeypatch):
    def engine(): raise Unable("the worlds need MuJoCo 4.0 or newer: pip install --upgrade 'mujoco>=4'")
    monkeypatch.setattr(m, 'engine', engine)
    code, out, err = ldm(capsys, 'render', run)
    assert code == 1 and "pip install --upgrade 'mujoco>=4'" in err

def test_gridworld_run(tmp_path, capsys):
    "A trained run of a gridworld: its map, without MuJoCo"
    run = tmp_path/'run'
    assert ldm(capsys, 'train', 'gridworld', '--method', 'rl2', '--seeds', '3,7', '--frames', '2000', '--out', run)[0] == 0
    code, out, err = ldm(capsys, 'render', run, '--task', '6,0', '--seed', '7', '--episode', '1')
    assert code == 0 and 'task 6, 0; returns of its episodes:' in out, err
    with Image.open(run/'film.gif') as f: assert f.info['duration'] == 250 and 1 < f.n_frames <= 31
    code, _, err = ldm(capsys, 'render', run, '--seed', '5')
    assert code == 2 and 'has no seed 5' in err
    assert ldm(capsys, 'check', run)[0] == 0
    (run/'weights.safetensors').unlink()
    for c in run.glob('checkpoint-*/*.pt'): c.write_bytes(b'torn')
    code, _, err = ldm(capsys, 'render', run)
    assert code == 2 and 'has neither weights nor a whole checkpoint' in err
