"The belief theatre plays as the package does: every action, the decoder's rewards, the mixture."
import html, json, shutil, subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from build import HERE, SHOWN, theatre_networks
from ldm_nb import load, train
from ldm_nb.belief.decoder import decode_naive
from ldm_nb.belief.encoder import encode
from ldm_nb.evaluation.evaluate import evaluate
from ldm_nb.lab.opened import opened
from ldm_nb.lab.theatre import acting, packed, skeleton, theatre, theatre_data
from ldm_nb.core.errors import RunError
from ldm_nb.worlds.simulator import ANT, CHEETAH, engine, load as load_model
from ldm_nb.mixture.mixture import mix, mixture_weights

ROOT = HERE.parents[1]
WEIGHTS, AGENT = ROOT/'data/weights', HERE/'theatre/agent.js'
NODE = shutil.which('node')
node = pytest.mark.skipif(not NODE, reason='node is not installed')

ROBOTS = sum(any(n.startswith('cheetah') and (WEIGHTS/f'{n}.safetensors').exists() for n in names) for names in SHOWN.values()) # agents of the first world
STEMS = [f'{n}' for names in SHOWN.values() for n in names if n.startswith('gridworld') and (WEIGHTS/f'{n}.safetensors').exists()]
def pack(path, i=0):
    "The networks of the `i`-th seed of a file"
    job = opened(path)
    return packed(acting(job, job.progress.seeds[i])) | dict(seed=job.progress.seeds[i])

def run(script, net, tmp_path):
    "What a script prints, with the networks as `p` and the theatre's functions as `a`"
    (tmp_path/'net.json').write_text(json.dumps(net))
    head = f"const a = require({json.dumps(str(AGENT))}), fs = require('fs'); const p = a.unpack(JSON.parse(fs.readFileSync({json.dumps(str(tmp_path/'net.json'))})));"
    r = subprocess.run([NODE, '-e', f'{head} console.log(JSON.stringify({script}))'], capture_output=True, encoding='utf-8')
    assert not r.returncode, r.stderr
    return json.loads(r.stdout)

def test_all_networks():
    "Every network that the theatre names is in data/weights, small enough to load"
    found, robots = theatre_networks(WEIGHTS)
    assert set(found) <= set(SHOWN) and len(found) == len(STEMS) >= 3
    assert len(json.dumps(found)) < 2_500_000 and all('critic' not in k for n in found.values() for k in n['at'])
    assert {p['world'] for p in robots['plays']} == {'cheetah-vel', 'ant-dir', 'ant-goal'} and len(json.dumps(robots)) < 2_500_000

@node
@pytest.mark.parametrize('stem', STEMS)
@pytest.mark.parametrize('i', [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))])
def test_actions(stem, i, tmp_path):
    "The same 120 actions for all 45 goals; the theatre shows the first seed of a file"
    path = WEIGHTS/f'{stem}.safetensors'
    net = pack(path, i)
    world, agent = load(path, seed=net['seed'])
    traj = evaluate(world, agent, split='all', seeds=1)
    theirs = run("Object.fromEntries(a.CELLS.map(g => [g, a.play(p, g).slice(1).map(m => m.action).join('')]))", net, tmp_path)
    for k, (x, y) in enumerate(world.family.splits['all'].tasks.int().tolist()):
        assert theirs[f'{x},{y}'] == ''.join(map(str, traj.action[0, :, k].tolist())), (stem, net['seed'], x, y)

@node
def test_mixture(tmp_path):
    "The mixing panel: weights of Eq. (1), the mixture of final beliefs and its rewards equal the package's, without dropout"
    path, goals, raw, beta = WEIGHTS/'gridworld-ldm-one-goal.safetensors', [[2, 6], [6, 4], [2, 0]], [1., .5, 1.5], 1.5
    net = pack(path, 0)
    script = f'(w => ({{w, r: [...a.imagine(p, {goals}, w, {{dropout: 0, samples: 1}})]}}))(a.stretch({raw}, {beta}))'
    theirs = run(script, net, tmp_path)
    alpha = mixture_weights(torch.tensor(raw)[None, None, None], beta) # [1,1,1,3]
    assert torch.tensor(theirs['w']).allclose(alpha.flatten(), atol=1e-6)
    job = opened(path)
    world, state, (encoder, decoder, _) = job.world, job.progress.state, job.method.network(job.cfg, job.progress.state)
    traj = evaluate(world, job.method.agent(job.cfg, state, True), split='all', seeds=len(job.info['seeds']))
    at = [world.family.splits['all'].tasks.int().tolist().index(g) for g in goals]
    mu, _ = encode(encoder, traj.after, traj.action, traj.reward)
    m_hat = mix(alpha, mu[:1, -1:, at]) # [1,1,1,D]
    cells = torch.cat([world.map.places[:, :2], torch.zeros(world.n_cells, 1)], 1)[None, None]
    first = lambda t: {k: first(v) if isinstance(v, dict) else v[:1] for k, v in t.items()}
    logit = decode_naive(first(decoder), m_hat[:, 0, :, None].expand(-1, -1, world.n_cells, -1), cells, torch.ones(1, 1, world.n_cells, 32, dtype=torch.bool), 1.)
    assert torch.tensor(theirs['r']).allclose(world.rewards.imagine(logit).flatten().float(), atol=1e-3)

@node
@pytest.mark.parametrize('body', [CHEETAH, ANT], ids=['cheetah', 'ant'])
def test_bodies(body, tmp_path):
    "The ends of every limb are where MuJoCo has them, for random poses"
    mujoco, m = engine(), load_model(body)
    data, gen, where = mujoco.MjData(m), np.random.default_rng(0), skeleton(body)
    for _ in range(5):
        q = m.qpos0 + gen.normal(0, .5, m.nq)
        if body is ANT: q[3:7] /= np.linalg.norm(q[3:7])
        data.qpos[:] = q
        mujoco.mj_kinematics(m, data)
        script = f"const a = require({json.dumps(str(HERE/'theatre/robots.js'))}); console.log(JSON.stringify(a.place({json.dumps(where['links'])}, {q.tolist()})))"
        theirs = json.loads(subprocess.run([NODE, '-e', script], capture_output=True, encoding='utf-8', check=True).stdout)
        shapes = iter(theirs)
        for g in (g for i in range(1, m.nbody) for g in range(m.ngeom) if m.geom_bodyid[g] == i):
            half = m.geom_size[g][1] if m.geom_type[g] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.
            along, (a, b, radius) = data.geom_xmat[g].reshape(3, 3)[:, 2]*half, next(shapes)
            assert np.allclose(a, data.geom_xpos[g] - along, atol=1e-6) and np.allclose(b, data.geom_xpos[g] + along, atol=1e-6)
            assert radius == pytest.approx(m.geom_size[g][0])
        assert next(shapes, None) is None

@node
def test_poses(tmp_path):
    "A pose that JavaScript reads is the recorded one, to a unit of 1/400 m or rad"
    _, robots = theatre_data({'LDM': 'cheetah-vel-ldm-reduced'})
    (tmp_path/'play.json').write_text(json.dumps(robots['plays'][1]))
    script = f"const a = require({json.dumps(str(HERE/'theatre/robots.js'))}); console.log(JSON.stringify(a.poses(JSON.parse(require('fs').readFileSync({json.dumps(str(tmp_path/'play.json'))})), 9, {robots['units']})))"
    theirs = json.loads(subprocess.run([NODE, '-e', script], capture_output=True, encoding='utf-8', check=True).stdout)
    assert len(theirs) == 202 and robots['plays'][1]['starts'] == [0, 101]
    assert abs(theirs[101][0]) < .2 < abs(theirs[100][0])  # the second episode begins at the start again

def test_own_run(tmp_path):
    "A run of one's own is shown, in single precision; an agent without a memory of its own is refused in words"
    out = train('gridworld', 'ldm', out=tmp_path/'mine', frames=1920, seeds=[5])
    shown = theatre(tmp_path/'mine')
    assert shown.labels == ['mine'] and '"single": true' in shown.html and '"seed": 5' in shown.html and 'iframe srcdoc' in shown._repr_html_()
    with pytest.raises(RunError, match='cannot be shown'): theatre_data({'x': str(train('gridworld', 'ldm', out=tmp_path/'other', frames=1920, seeds=[5], state_conditioned=True))})

PROBE = """<script>
const faults = [];
addEventListener('error', e => faults.push(e.message)); console.error = (...x) => faults.push(x.join());
addEventListener('load', () => setTimeout(() => {
  const $ = s => document.querySelector(s), key = (e, k) => e.dispatchEvent(new KeyboardEvent('keydown', {key: k, bubbles: true}));
  key($('svg.map[role=application]'), 'ArrowUp');                       // moves the goal from (3, 4) to (3, 5)
  const outcome = [0, STEPS].map(t => { const s = $('#step'); s.value = t; s.dispatchEvent(new Event('input')); return $('#outcome').textContent; });
  for (const k of 'urrd') key([...document.querySelectorAll('svg.map')][2], {u: 'ArrowUp', r: 'ArrowRight', d: 'ArrowDown'}[k]);
  const task = $('#task'); task.selectedIndex = 3; task.dispatchEvent(new Event('change'));
  $('#play').click(); $('#play').click();
  const played = Object.fromEntries(Object.keys(NETWORKS).map(n => [n, Object.fromEntries(CELLS.map(c => [c, play(unpack(NETWORKS[n]), c).slice(1).map(m => m.action).join('')]))]));
  const seen = {faults, outcome, yours: $('#yours').textContent, played, wide: document.scrollingElement.scrollWidth, canvases: document.querySelectorAll('canvas').length};
  document.body.append(Object.assign(document.createElement('pre'), {id: 'seen', textContent: JSON.stringify(seen)}));
}, 100));
</script>"""

@pytest.mark.skipif(not shutil.which('chromium'), reason='chromium is not installed')
@pytest.mark.parametrize('width', [420, pytest.param(1280, marks=pytest.mark.slow)])
def test_page(tmp_path, width):
    "The page opens from disk: no error, works by keyboard, is not wider than the window, and plays every goal as PyTorch does"
    shutil.copytree(HERE/'theatre', tmp_path/'theatre')
    (tmp_path/'theatre/networks.js').write_text(f'const [NETWORKS, ROBOTS] = {json.dumps(theatre_networks(WEIGHTS), ensure_ascii=False)};', encoding='utf-8')
    body = (HERE/'theatre/page.md').read_text(encoding='utf-8')
    page = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{PROBE}<div style="max-width: {width - 16}px">' + body[body.index('<div id="theatre">'):]
    (tmp_path/'x.html').write_text(page, encoding='utf-8')
    argv = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile', f'--window-size={max(width, 500)},900', '--virtual-time-budget=20000', '--dump-dom', str(tmp_path/'x.html')]
    dom = subprocess.run(argv, capture_output=True, encoding='utf-8', timeout=240).stdout
    seen = json.loads(html.unescape(dom[dom.index('<pre id="seen">') + 15:].split('</pre>')[0]))
    assert not seen['faults'] and 'needs JavaScript' not in dom
    assert seen['outcome'][0] == 'Goal (3, 5), a test goal. Press Play.' and seen['outcome'][1].count('finds it') == 2 # nothing is told before it is played
    assert 'episode 1, step 4' in seen['yours'] and seen['canvases'] == ROBOTS
    assert seen['wide'] <= max(width, 500)  # the narrowest window of headless Chromium is 500
    for label, names in SHOWN.items():
        if label not in seen['played']: continue
        world, agent = load(WEIGHTS/f'{names[0]}.safetensors')
        traj = evaluate(world, agent, split='all', seeds=1)
        for k, (x, y) in enumerate(world.family.splits['all'].tasks.int().tolist()):
            assert seen['played'][label][f'{x},{y}'] == ''.join(map(str, traj.action[0, :, k].tolist())), (label, x, y)
