"""Off-policy methods: SAC and TD3 swing up a pendulum within the frames that independent loops need, PEARL's buffers and records."""
import dataclasses, json, math, shutil, time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from ldm_nb.worlds.envs import WorldVectorEnv
from ldm_nb import load
from ldm_nb.core.seeds import draw, flat, generators, take, tree_map
from ldm_nb.core.settings import override
from ldm_nb.core.optimisers import init_moments
from ldm_nb.lab import cli, presets
from ldm_nb.lab.checkpoints import save_checkpoint
from ldm_nb.lab.cli import main
from ldm_nb.methods import mier, mql, pearl
from ldm_nb.methods.replay import Transition, empty_replay, from_rows, gather_rows, kept, pick_rows, row_size, to_rows, write
from ldm_nb.methods.sac import SAC, actor_outputs, init_net, init_sac, init_sac_moments, sac_step, squashed
from ldm_nb.methods.td3 import TD3, init_td3, td3_action, td3_step
from ldm_nb.evaluation.evaluate import with_episodes
from ldm_nb.training.rollout import rollout, scan
from ldm_nb.training.trainer import Progress, train
from ldm_nb.worlds.registry import OURS, make_world


# A pendulum: the dynamics of gymnasium's Pendulum-v1, as tensors [S,B]

def push(theta, speed, action):
    "Angle and angular velocity after a step, and its reward; an action of 1 is the full torque of 2 N m"
    torque = 2*action[..., 0]
    angle = (theta + math.pi) % (2*math.pi) - math.pi
    reward = -(angle**2 + .1*speed**2 + .001*torque**2)
    speed = (speed + (15*torch.sin(theta) + 3*torque)*.05).clamp(-8, 8)
    return theta + speed*.05, speed, reward

def see(theta, speed): return torch.stack([theta.cos(), theta.sin(), speed], -1)

def first(u): return (2*u[..., 0] - 1)*math.pi, 2*u[..., 1] - 1

def test_the_pendulum_is_gymnasiums():
    env = gymnasium.make('Pendulum-v1').unwrapped
    env.reset(seed=0)
    theta, speed = (torch.tensor([[x]], dtype=torch.float64) for x in env.state)
    for a in np.random.default_rng(0).uniform(-1, 1, 50):
        obs, want, *_ = env.step(np.array([2*a]))
        theta, speed, reward = push(theta, speed, torch.tensor([[[a]]]))
        assert abs(reward.item() - want) < 1e-9 and np.allclose(see(theta, speed)[0, 0].numpy(), obs, atol=1e-5)

def greedy_return(act):
    "Mean return of ten starts"
    theta, speed = first(torch.rand(1, 10, 2, generator=torch.Generator().manual_seed(0)))
    total = 0
    for _ in range(200):
        theta, speed, reward = push(theta, speed, act(see(theta, speed)))
        total = total + reward
    return total.mean().item()

def frames_until(wanted, nets, opt, act, step, noise, seed=0, random=1000, most=12_000):
    "Frames until the greedy return, looked at every 500 frames, is above `wanted`; one step of learning a frame"
    g, rows, count, zero = generators([seed]), empty_replay(1, 1, most, row_size(3, 1)), torch.zeros(1, 1).long(), torch.zeros(1, 1).long()
    theta, speed = first(draw(g['reset'], 'uniform', 1, 2))
    for t in range(most):
        obs, u = see(theta, speed), draw(g['action'], 'normal', 1, 1)
        with torch.no_grad(): action = act(nets, obs, u) if t >= random else 2*draw(g['action'], 'uniform', 1, 1) - 1
        theta, speed, reward = push(theta, speed, action)
        row = to_rows(Transition(obs, action, reward, see(theta, speed), torch.zeros_like(reward), torch.full_like(reward, t % 200)))
        count, _ = write(rows, count, zero, row[:, :, None])
        if t % 200 == 199: theta, speed = first(draw(g['reset'], 'uniform', 1, 2))
        if t < random: continue
        number = pick_rows(draw(g['vae'], 'uniform', 1, 128), *kept(count, most))
        batch = from_rows(gather_rows(rows, zero, number)[:, 0], 3, 1)
        nets, opt, _ = step(nets, opt, batch, draw(g['vae'], 'normal', 128, noise), t)
        if t % 500 == 499:
            with torch.no_grad(): value = greedy_return(lambda obs: act(nets, obs, None))
            if value > wanted: return t + 1
    return math.inf

# Frames that plain loops with CleanRL's settings need on gymnasium's Pendulum-v1, 1000 random ones included, as ours: tests/pendulum_reference.py, seed 1
REFERENCE = dict(sac=4000, td3=7500)

def sac_act(nets, obs, u):
    mean, log_std = actor_outputs(nets['actor'], obs)
    return torch.tanh(mean) if u is None else squashed(mean, log_std, u)[0]

@pytest.mark.slow
@pytest.mark.parametrize('bootstrap,rate', [('value', 3), ('twin', 1)])
def test_sac_swings_up_a_pendulum(bootstrap, rate):
    # with a value network, a value reaches the critics through two networks, so its steps are three times as large here
    cfg = SAC(bootstrap, (64, 64), rl_lr=rate*1e-3, reward_scale=1., tau=rate*.01)
    nets = init_sac(cfg, generators([0])['init'], 3, 1)
    def step(nets, opt, batch, u, t): return sac_step(cfg, nets, opt, batch, u)
    assert frames_until(-200, nets, init_sac_moments(nets), sac_act, step, 2) <= 1.5*REFERENCE['sac']

@pytest.mark.slow
def test_td3_swings_up_a_pendulum():
    cfg = TD3((64, 64), rl_lr=1e-3, tau=.01)
    nets = init_td3(cfg, generators([0])['init'], 3, 1)
    def act(nets, obs, u): return td3_action(nets['actor'], obs, None if u is None else cfg.explore_std*u)
    def step(nets, opt, batch, u, t): return td3_step(cfg, nets, opt, batch, u, t % cfg.delay == 0)
    opt = {k: init_moments(nets[k]) for k in ('actor', 'twin')}
    assert frames_until(-200, nets, opt, act, step, 1, most=20_000) <= 1.5*REFERENCE['td3']


# PEARL

SMALL = dict(workers=2, chunk=90, prior_steps=30, initial_steps=30, replay_size=600, updates=2, meta_batch=2, context_batch=5, task_batch=6, hidden=(8, 8),
             context_layers=(8,))

@pytest.mark.parametrize('world', presets.ROBOT_WORLDS)
def test_a_checkpoint_with_full_reduced_buffers_is_small(world, tmp_path):
    "Under 64 MB a seed"
    w, cfg, gens = presets.make_world(world), presets.preset(world, 'pearl', 'reduced'), generators([0])
    state = pearl.init(cfg, w, gens)
    state['buffer']['rows'].fill_(1.5)
    path = save_checkpoint(tmp_path, Progress([0], state, 7), gens, None)
    assert (path/'seed-0.pt').stat().st_size < 64e6

@pytest.mark.parametrize('world', ['gridworld', 'gridworld-extrapolation'])
def test_a_gridworld_is_refused_in_one_line(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as e: main(['train', world, '--method', 'pearl', '--out', str(tmp_path/'run')])
    err = capsys.readouterr().err
    assert e.value.code == 2 and not (tmp_path/'run').exists()
    assert err.strip() == f'ldm: method is pearl: {world} has discrete actions, PEARL needs continuous ones, as in cheetah-vel'

def test_a_step_is_that_of_plain_torch():
    "Double precision: modules and Adam of torch, every loss written out; the encoder learns from the critics and the KL term alone"
    cfg = override(pearl.PEARL(), context_kl=.3, hidden=(8, 8), context_layers=(8,), task_latent=3)
    M, C, n, O, A, L = 2, 5, 6, 4, 2, 3
    nets = dict(encoder=init_net(generators([0])['init'], O + A + 1, (8,), 2*L, 1.), **init_sac(cfg.sac, generators([1])['init'], O + L, A))
    params = tree_map(lambda x: (x + .1*torch.randn(x.shape, generator=torch.Generator().manual_seed(3))).double(), nets)
    opt = {k: init_moments(params[k]) for k in ('encoder', 'actor', 'twin', 'value')}
    g = torch.Generator().manual_seed(4)
    def some(*k): return torch.randn(*k, generator=g, dtype=torch.float64)
    def steps(n): return Transition(some(1, M, n, O), some(1, M, n, A).tanh(), some(1, M, n), some(1, M, n, O), (some(1, M, n) > 1).double(), None)
    context, batch, noise = steps(C), steps(n), dict(z=some(1, M, L), action=some(1, M*n, A))
    new, _, losses = pearl.pearl_step(cfg, params, opt, context, batch._replace(step=batch.died), noise)

    leaves = tree_map(lambda x: x[0].clone().requires_grad_(), params)
    def layers(p, *i): return [(v['w'][i], v['b'][i]) for _, v in sorted(p.items())]
    def forward(layers, x):
        for w, b in layers[:-1]: x = (x @ w + b).relu()
        return x @ layers[-1][0] + layers[-1][1]
    def critic(i, x): return forward(layers(leaves['twin'], i), x)[..., 0]
    def adam_of(*names): return torch.optim.Adam([x for k in names for x in flat(leaves[k]).values()], lr=cfg.sac.rl_lr)
    z, kl = [], 0
    for k in range(M): # the product of the factors, one after another
        out = forward(layers(leaves['encoder']), torch.cat([context.obs[0, k], context.action[0, k], context.reward[0, k, :, None]], 1))
        mean, variance = out[0, :L], torch.nn.functional.softplus(out[0, L:])
        for m, v in zip(out[1:, :L], torch.nn.functional.softplus(out[1:, L:])):
            mean, variance = (mean*v + m*variance)/(variance + v), variance*v/(variance + v)
        z.append((mean + variance.sqrt()*noise['z'][0, k]).expand(n, L))
        kl = kl + torch.distributions.kl_divergence(torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0., 1.)).sum()
    z = torch.cat(z)
    obs, action, reward, after, died = (x[0].flatten(0, 1) for x in batch[:5])
    with torch.no_grad(): y = 5*reward + .99*(1 - died)*forward(layers(leaves['slow']), torch.cat([after, z], 1))[:, 0]
    first = adam_of('twin', 'encoder')
    q_loss = sum(torch.nn.functional.mse_loss(critic(i, torch.cat([obs, z, action], 1)), y) for i in range(2))
    (q_loss + .3*kl).backward()
    first.step()
    x = torch.cat([obs, z.detach()], 1)
    mean, log_std = forward(layers(leaves['actor']), x).chunk(2, 1)
    normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
    raw = mean + normal.scale*noise['action'][0]
    logp = (normal.log_prob(raw) - (1 - raw.tanh()**2 + 1e-6).log()).sum(1)
    q = torch.min(critic(0, torch.cat([x, raw.tanh()], 1)), critic(1, torch.cat([x, raw.tanh()], 1)))
    second = adam_of('actor', 'value')
    second.zero_grad()
    value = forward(layers(leaves['value']), x)[:, 0]
    actor = (logp - q).mean() + 1e-3*((mean**2).mean() + (log_std**2).mean())
    (actor + ((value - (q - logp).detach())**2).mean()).backward()
    second.step()
    for k, w in flat(leaves['slow']).items(): w.data.lerp_(flat(leaves['value'])[k].data, .005)
    for k in new:
        for name, w in flat(new[k]).items(): assert torch.allclose(w[0], flat(leaves[k])[name], atol=1e-9), (k, name)
    assert torch.allclose(torch.stack([losses[k][0] for k in ('critic', 'kl', 'actor')]), torch.stack([q_loss, kl, actor]), atol=1e-9)

def plain_layers(p, *i): return [(p[k]['w'][i], p[k]['b'][i]) for k in sorted(p, key=lambda k: (k == 'out', k)) if k != 'bounds']

def plain_mlp(layers, x, act=torch.relu):
    for w, b in layers[:-1]: x = act(x @ w + b)
    return x @ layers[-1][0] + layers[-1][1]

def doubled(nets, seed):
    "Networks in double precision, each moved away from its initial values and from its slow one"
    g = torch.Generator().manual_seed(seed)
    return tree_map(lambda x: (x + .1*torch.randn(x.shape, generator=g)).double(), nets)

def test_a_step_of_mql_is_that_of_plain_torch():
    "Double precision: torch's GRU on each window without padding, modules and Adam of torch; with weights and a pull, as in the adaptation"
    cfg, O, A, F, U = override(mql.MQL(), history=3, context_units=5, hidden=(8, 8), rl_lr=1e-2), 4, 2, 7, 5
    nets = mql.init_networks(cfg, generators([0])['init'], O, A)
    params, centre = doubled(nets, 3), doubled(nets, 4)
    opt, g = {k: init_moments(params[k]) for k in ('actor', 'twin')}, torch.Generator().manual_seed(5)
    def some(*k): return torch.randn(*k, generator=g, dtype=torch.float64)
    at = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]) # two episodes, of 5 and 7 steps
    T = Transition(some(12, O), some(12, A).tanh(), some(12), some(12, O), some(12) > 1, at)
    T = Transition(*(x.float().double() for x in T)) # the buffer holds single precision
    zero, n = torch.zeros(1, 1).long(), len(at)
    batch = mql.situations(to_rows(T)[None, None], zero + n, zero, torch.arange(n)[None, None], cfg.history, (O, A))
    batch = mql.each(lambda x: x.double() if x.is_floating_point() else x, batch)
    noise = [(some(1, n, A), some(1, n).exp()) for _ in range(2)] # two steps: the first one of Adam does not tell the size of a gradient
    new, losses = params, []
    for u, weight in noise:
        new, opt, found = td3_step(cfg.td3, new, opt, batch, u, True, weight, .3, centre, mql.see)
        losses.append(torch.stack([found['critic'][0], found['actor'][0]]))

    leaves = tree_map(lambda x: x[0].clone().requires_grad_(), params)
    adams = {k: torch.optim.Adam(list(flat(leaves[k]).values()), lr=1e-2) for k in ('actor', 'twin')}
    def seen(p, obs, k, end): # context of the steps of its episode before row `end`, at most three of them
        rows = range(max(k - int(at[k]), end - cfg.history), end)
        cell, h = torch.nn.GRUCell(F, U, dtype=torch.float64), torch.zeros(1, U, dtype=torch.float64)
        names = dict(weight_ih=p['w_x'].T, weight_hh=p['w_h'].T, bias_ih=p['b_x'][0], bias_hh=p['b_h'][0])
        for i in rows:
            step = torch.cat([T.action[i], T.reward[i:i+1], T.after[i]])[None]
            h = torch.func.functional_call(cell, names, (step, h))
        return torch.cat([obs[k], h[0]])
    def inputs(name, later): return torch.stack([seen(leaves[name]['gru'], T.after if later else T.obs, k, k + later) for k in range(n)])
    def act(name, later): return plain_mlp(plain_layers(leaves[name]['net']), inputs(name, later)).tanh()
    def critics(name, later, action):
        x = torch.cat([inputs(name, later), action], 1)
        return [plain_mlp(plain_layers(leaves[name]['net'], i), x)[:, 0] for i in range(2)]
    def distance(name): return sum(((x - flat(centre[name])[k][0])**2).sum() for k, x in flat(leaves[name]).items())
    def step(name, loss):
        adams[name].zero_grad(); loss.backward(); adams[name].step()
    for (u, weight), found in zip(noise, losses):
        with torch.no_grad():
            action = (act('slow_actor', 1) + (cfg.td3.target_std*u[0]).clamp(-.5, .5)).clamp(-1, 1)
            y = T.reward + .99*(1 - T.died)*torch.min(*critics('slow_twin', 1, action))
        first = sum((weight[0]*(q - y)**2).mean() for q in critics('twin', 0, T.action)) + .3*distance('twin')
        step('twin', first)
        second = -(weight[0]*critics('twin', 0, act('actor', 0))[0]).mean() + .3*distance('actor')
        step('actor', second)
        for k in ('actor', 'twin'):
            for name, w in flat(leaves[f'slow_{k}']).items(): w.data.lerp_(flat(leaves[k])[name].data, .005)
        assert torch.allclose(found, torch.stack([first, second]), atol=1e-9)
    for k in new:
        for name, w in flat(new[k]).items(): assert torch.allclose(w[0], flat(leaves[k])[name], atol=1e-9), (k, name)

def test_a_step_of_mier_is_that_of_plain_torch():
    "Double precision: the two steps on the context task by task, Adam of torch, every loss written out; SAC has no gradient for the model"
    M, n, O, A, L = 2, 6, 4, 2, 3
    cfg = override(mier.MIER(), hidden=(8, 8), model_layers=(8, 8), context_size=L, context_lr=.1, context_clip=2., model_clip=4., rl_lr=1e-2, model_lr=1e-2)
    params = doubled(dict(model=mier.init_model(cfg, generators([0])['init'], O + A), **init_sac(cfg.sac, generators([1])['init'], O + L, A)), 3)
    opt = {k: init_moments(params[k]) for k in ('model', 'actor', 'twin', 'temperature')}
    g = torch.Generator().manual_seed(4)
    def some(*k): return torch.randn(*k, generator=g, dtype=torch.float64)
    def steps(): return Transition(some(1, M, n, O), some(1, M, n, A).tanh(), 3*some(1, M, n), some(1, M, n, O), (some(1, M, n) > 1).double(), None)
    first, batch = (x._replace(step=x.died) for x in (steps(), steps()))
    noise, new, losses = [some(1, M*n, 2*A) for _ in range(2)], params, [] # two steps: the first one of Adam does not tell the size of a gradient
    for u in noise:
        new, opt, found = mier.mier_step(cfg, new, opt, first, batch, u)
        losses.append(found)

    leaves = tree_map(lambda x: x[0].clone().requires_grad_(), params)
    adams = {k: torch.optim.Adam(list(flat(leaves[k]).values()), lr=1e-2) for k in opt}
    clips = []
    def model_loss(phi, x, k):
        inputs = torch.cat([x.obs[0, k], x.action[0, k], phi.expand(n, L)], 1)
        out = plain_mlp(plain_layers(leaves['model']), inputs, lambda h: torch.nn.functional.leaky_relu(h, .2))
        high, low = leaves['model']['bounds']
        lv = high - torch.nn.functional.softplus(high - out[:, 1])
        lv = low + torch.nn.functional.softplus(lv - low)
        return ((out[:, 0] - x.reward[0, k])**2/lv.exp() + lv).mean() + .01*(high - low)
    def clip(d, limit): clips.append(d.norm().item() > limit); return d*(limit/d.norm()).clamp(max=1)
    def context(k):
        f = torch.zeros(L, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            d, = torch.autograd.grad(model_loss(f, first, k), f, create_graph=True)
            f = f - .1*clip(d, 2.)
        return f
    obs, action, reward, after, died = (x[0].flatten(0, 1) for x in batch[:5])
    def critics(name, x, a): return [plain_mlp(plain_layers(leaves[name], i), torch.cat([x, z, a], 1))[:, 0] for i in range(2)]
    def act(x, u):
        mean, log_std = plain_mlp(plain_layers(leaves['actor']), torch.cat([x, z], 1)).chunk(2, 1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
        raw = mean + normal.scale*u
        return raw.tanh(), (normal.log_prob(raw) - (1 - raw.tanh()**2 + 1e-6).log()).sum(1)
    def step(value, *names):
        for k in names: adams[k].zero_grad()
        value.backward()
        if names == ('model',):
            for w in flat(leaves['model']).values(): w.grad = clip(w.grad, 4.)
        for k in names: adams[k].step()
    log_alpha = leaves['temperature']['log_alpha']
    for u, found in zip(noise, losses):
        phi = [context(k) for k in range(M)]
        loss = sum(model_loss(f, batch, k) for k, f in enumerate(phi))/M
        step(loss, 'model')
        z = torch.cat([f.detach().expand(n, L) for f in phi])
        now, then = u[0].chunk(2, 1)
        with torch.no_grad():
            a, logp = act(after, then)
            y = reward + .99*(1 - died)*(torch.min(*critics('slow', after, a)) - log_alpha.exp()*logp)
        q_loss = sum(((q - y)**2).mean() for q in critics('twin', obs, action))
        step(q_loss, 'twin')
        a, logp = act(obs, now)
        actor = (log_alpha.exp().detach()*logp - torch.min(*critics('twin', obs, a))).mean()
        warm = -(log_alpha*(logp.detach() + cfg.sac.target_entropy)).mean()
        step(actor + warm, 'actor', 'temperature')
        for k, w in flat(leaves['slow']).items(): w.data.lerp_(flat(leaves['twin'])[k].data, .005)
        for k, x in dict(model=loss, critic=q_loss, actor=actor, temperature=warm).items(): assert torch.allclose(found[k][0], x, atol=1e-6), k
    assert 0 < sum(clips) < len(clips) # some gradients are clipped, others are not
    for k in new:
        for name, w in flat(new[k]).items(): assert torch.allclose(w[0], flat(leaves[k])[name], atol=1e-6), (k, name)

def test_the_posterior_of_a_visit_is_that_of_its_own_context():
    "The actions of its later episodes follow from z, and z from the rows of this visit that the noise picks"
    w, gens = presets.make_world('cheetah-vel', horizon=30), generators([3, 7])
    cfg = override(pearl.PEARL(), **SMALL, train_tasks=2)
    state = pearl.init(cfg, w, gens)
    noise = pearl.draw_noise(cfg, w, gens, 5)
    rows = pearl.collect(cfg, w, state, noise).rows # [S,W,90,D]
    x, part = from_rows(rows, w.obs_dim, w.action_dim), noise['posterior']
    assert noise['pick'].shape == (2, 2, 5) # one episode of each visit has z of the posterior
    for s in range(2):
        for v in range(2):
            picked = (noise['pick'][s, v]*cfg.prior_steps).long()
            mean, variance = pearl.infer(take(state['params']['encoder'], s), Transition(*(y[s:s+1, v:v+1][:, :, picked] for y in x)))
            z = (mean + variance.sqrt()*part['start'][s, v])[0].expand(30, -1)
            m, log_std = actor_outputs(take(state['params']['actor'], s), torch.cat([x.obs[s, v, 60:], z], 1)[None])
            assert torch.allclose(torch.tanh(m + log_std.exp()*part['action'][s:s+1, :, v]), x.action[s:s+1, v, 60:], atol=1e-5)

def test_usual_lengths(capsys):
    "Of runs from the command line: the paper's 5e6 frames, and 5e5 with `reduced`"
    for preset, frames in (('paper', 5_000_000), ('reduced', 500_000)):
        argv = f'cheetah-vel --method pearl --preset {preset}'.split()
        run, cfg = cli.parse_train(argv)
        assert cli.describe(run, cfg, argv)['frames'] == frames

def test_finite_lists_of_training_tasks():
    "Drawn once for each seed, from the training tasks; the four directions are a list already"
    for world, n in (('cheetah-vel', 100), ('ant-goal', 150), ('ant-dir', 4)):
        w = presets.make_world(world)
        cfg = override(presets.preset(world, 'pearl'), replay_size=5000, hidden=(8,), context_layers=(8,))
        a, b, again = (pearl.init(cfg, w, generators([s]))['buffer']['tasks'] for s in (0, 1, 0))
        assert a.shape[1] == n and w.family.splits['train'].contains(a).all() and torch.equal(a, again)
        assert torch.equal(a, b) == (world == 'ant-dir')

def test_ants_that_fall_go_on_in_the_same_task():
    "Deaths are terminal, and no step joins two episodes"
    w = presets.make_world('ant-dir', horizon=60)
    cfg = override(presets.preset('ant-dir', 'pearl'), **SMALL | dict(chunk=180, prior_steps=60, initial_steps=60))
    gens = generators([3, 7])
    state = pearl.init(cfg, w, gens)
    exp = pearl.collect(cfg, w, state, pearl.draw_noise(cfg, w, gens, 0))
    x = from_rows(exp.rows, w.obs_dim, w.action_dim)
    begins = x.step[:, :, 1:] == 0
    assert torch.equal(x.obs[:, :, 1:][~begins], x.after[:, :, :-1][~begins])
    assert ((x.obs[:, :, 1:] != x.after[:, :, :-1]).any(-1) | ~begins).all()
    assert not x.died[:, :, :-1][~begins].any()

def test_the_third_episode_is_scored(tmp_path, capsys):
    "A run of two seeds by the command line: records of three episodes, then its evaluation"
    run, options = tmp_path/'run', '--workers 2 --chunk 400 --prior-steps 200 --initial-steps 400 --replay-size 900 --updates 2 --meta-batch 2 --train-tasks 2'
    def ldm(*argv):
        with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
        assert e.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out
    ldm('train', 'cheetah-vel', '--method', 'pearl', '--preset', 'reduced', '--seeds', '3,7', '--frames', 1600, '--hidden', 8, *options.split(), '--out', run)
    rows = [json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()]
    assert rows[-1]['episodes'] == 3 and len(rows[-1]['per_task']) == 7 and len(rows[-1]['per_task'][0]) == 3
    assert 'return, episode 3' in ldm('evaluate', run)
    assert 'cheetah-vel-pearl-tiny' in ldm('record', run, '--data', tmp_path/'data', '--variant', 'tiny')

@pytest.mark.slow
def test_a_step_of_the_paper_takes_less_than_700_ms():
    "Of processor time, on one thread: 16 tasks, context 100, batch 256, networks of 300"
    w = presets.make_world('cheetah-vel')
    cfg, gens = override(presets.preset('cheetah-vel', 'pearl'), replay_size=5000, updates=4), generators([0])
    state = pearl.init(cfg, w, gens)
    state['buffer']['rows'].normal_(generator=torch.Generator().manual_seed(0))
    state['stats'] = dict(count=state['stats']['count'] + 5000, recent=state['stats']['recent'] + torch.tensor([0, 400]))
    noise, params, opt, seconds = pearl.draw_noise(cfg, w, gens, 100)['learn'], state['params'], state['opt'], []
    for i in range(4):
        one, begun = {k: v[:, i] for k, v in noise.items()}, time.process_time()
        params, opt, _ = pearl.pearl_step(cfg, params, opt, *pearl.draw_batch(cfg, state, one, (20, 6)), one)
        seconds.append(time.process_time() - begun)
    assert min(seconds) < .7


# MQL and MIER

TINY = dict(mql='--horizon 100 --chunk 100 --workers 4 --initial-steps 200 --replay-size 900 --updates 2 --rl-batch 8 --hidden 8 --train-tasks 4 --history 4 --new-updates 2 --old-updates 2 --old-batch 8',
            mier='--workers 2 --chunk 400 --initial-steps 400 --replay-size 1200 --first-size 900 --updates 2 --meta-batch 2 --task-batch 8 --hidden 8 '
                 '--model-layers 8 --train-tasks 2 --model-updates 2 --rl-updates 2 --adapt-batch 8 --real-steps 2')

@pytest.mark.parametrize('method', TINY)
@pytest.mark.parametrize('world', presets.ROBOT_WORLDS)
def test_reduced_buffers_of_both_are_small(world, method, tmp_path):
    "Under 64 MB a seed, also in a checkpoint; the settings fit the world"
    w, cfg = presets.make_world(world), presets.preset(world, method, 'reduced')
    presets.check(cfg, w, presets.method_of(w, method))
    state = presets.method_of(w, method).init(cfg, w, generators([0]))
    for k in ('rows', 'first'):
        if k in state['buffer']: state['buffer'][k].fill_(1.5)
    path = save_checkpoint(tmp_path, Progress([0], state, 7), generators([0]), None)
    assert (path/'seed-0.pt').stat().st_size < 64e6

@pytest.mark.parametrize('method', TINY)
def test_both_are_refused_on_a_gridworld_in_one_line(method, tmp_path, capsys):
    with pytest.raises(SystemExit) as e: main(['train', 'gridworld', '--method', method, '--out', str(tmp_path/'run')])
    err = capsys.readouterr().err
    assert e.value.code == 2 and not (tmp_path/'run').exists()
    assert err.strip() == f'ldm: method is {method}: gridworld has discrete actions, {method.upper()} needs continuous ones, as in cheetah-vel'

def outside(run, seed, episodes, picture):
    "A trained agent plays all episodes of a task through gymnasium, and in a picture"
    world, agent = load(str(run), seed=seed)
    envs = WorldVectorEnv(world, num_envs=2) # the id has two episodes
    obs, info = envs.reset(seed=0)
    memory, ends = agent.start(2), []
    for t in range(world.horizon*episodes):
        u = torch.randn(1, 2, *agent.noise.step[1:]) if agent.noise.step else None # some sample their actions before they adapt
        with torch.no_grad(): action, _ = agent.act(memory, torch.as_tensor(obs)[None], u)
        after, reward, terminated, truncated, _ = envs.step(action[0].numpy())
        memory = agent.observe(memory, torch.as_tensor(after)[None], action, torch.as_tensor(reward, dtype=torch.float32)[None])
        ends.append(bool((terminated | truncated).all())); obs = after
    assert ends == [False]*(len(ends) - 1) + [True]
    with pytest.raises(SystemExit) as e: main(['render', str(run), '--task', '1.25', '--out', str(picture)])
    assert e.value.code == 0 and picture.stat().st_size > 2000

OUTSIDE = dict(pearl='--workers 2 --chunk 400 --initial-steps 400 --replay-size 900 --updates 2 --meta-batch 2 --task-batch 8 --hidden 8 --train-tasks 2',
               emaml='--workers 2 --rollouts 4 --horizon 50', promp='--workers 2 --rollouts 4 --horizon 50')

@pytest.mark.parametrize('method', OUTSIDE)
def test_played_through_gymnasium(method, tmp_path):
    run = tmp_path/'run'
    with pytest.raises(SystemExit) as e: main(['train', 'cheetah-vel', '--method', method, '--seeds', '3', '--frames', '800', *OUTSIDE[method].split(), '--out', str(run)])
    assert e.value.code == 0
    outside(run, 3, 3 if method == 'pearl' else 6, tmp_path/'film.gif')

@pytest.mark.parametrize('method', TINY)
def test_adaptation_in_the_last_evaluation(method, tmp_path, capsys):
    "The record says which evaluation adapted; an evaluation of the run adapts too, of its weights alone it does not"
    run, episodes = tmp_path/'run', dict(mql=11, mier=3)[method]
    def ldm(*argv):
        with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
        assert e.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out
    ldm('train', 'cheetah-vel', '--method', method, '--seeds', '3', '--frames', 2400, *TINY[method].split(), '--evaluate-every', 1200, '--out', run)
    rows = [json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()]
    assert [r['adapted'] for r in rows] == [False]*(len(rows) - 1) + [True] and len(rows[-1]['per_task'][0]) == episodes
    assert all(r['unadapted_test'] == r['test'] for r in rows[:-1]) and rows[-1]['unadapted_test'] != rows[-1]['test']
    world, agent = presets.load_agent(run, 3)
    assert world.episodes == episodes and agent.between and bool(agent.briefly) == (method == 'mier') # MIER infers a context in every evaluation
    with_buffer = ldm('evaluate', run)
    assert f'return, episode {episodes}' in with_buffer and 'The agent adapted in each task' in with_buffer
    without = ldm('evaluate', run, '--no-adapt')
    assert 'The agent did not adapt.' in without and without != with_buffer
    outside(run, 3, episodes, tmp_path/'film.gif')
    for folder in run.glob('checkpoint-*'): shutil.rmtree(folder)
    lost = ldm('evaluate', run)
    assert 'its run folder has no checkpoint' in lost and lost[lost.index('| method'):].split('The agent')[0] == without.split('The agent')[0]
    assert bool(presets.load_agent(run, 3)[1].between) == (method == 'mier') # without old steps
    assert 'cheetah-vel-' + method in ldm('record', run, '--data', tmp_path/'data', '--variant', 'tiny')

@pytest.mark.parametrize('method', TINY)
def test_a_test_task_leaves_no_trace(method):
    "A task is played alone as beside others; networks, buffer and statistics keep their bits"
    m, w = dict(mql=mql, mier=mier)[method], presets.make_world('cheetah-vel', horizon=20)
    small = dict(mql=dict(chunk=20, workers=2, initial_steps=20, train_tasks=2, replay_size=200, updates=2, rl_batch=8, history=4, context_units=8, hidden=(8,),
                          explore_episodes=1, new_updates=2, old_updates=2, old_batch=8, snapshot=20),
                 mier=dict(chunk=40, workers=2, prior_steps=20, initial_steps=40, train_tasks=2, replay_size=200, first_size=100, updates=2, meta_batch=2,
                           task_batch=8, hidden=(8,), model_layers=(8,), explore_episodes=1, model_updates=2, rl_updates=2, adapt_batch=8, real_steps=2))[method]
    cfg, gens = override(presets.preset('cheetah-vel', method), **small), generators([3, 7])
    state = m.init(cfg, w, gens)
    for i in range(2):
        noise = m.draw_noise(cfg, w, gens, i)
        state, _ = m.update(cfg, w, state, m.collect(cfg, w, state, noise), noise, i)
    before, agent = {k: v.clone() for k, v in flat(state).items()}, m.agent(cfg, state, True)
    T, task = 40, torch.tensor([.25, 3.25, 1.75]).expand(2, -1)[..., None]
    u, reset, noise = torch.randn(2, T, 3, 6), torch.rand(2, T + 1, 3, w.reset_noise), torch.rand(2, 2, 3)
    with torch.no_grad(): whole = rollout(w, agent, task, u, reset, noise=dict(episode=noise))
    for k, v in flat(state).items(): assert torch.equal(v, before[k]), k
    for b in range(3):
        one = rollout(w, agent, task[:, b:b+1], u[:, :, b:b+1], reset[:, :, b:b+1], noise=dict(episode=noise[:, :, b:b+1]))
        assert torch.equal(one.true_reward[:, :, 0], whole.true_reward[:, :, b])
    plain = rollout(w, dataclasses.replace(agent, between=None), task, u, reset, noise=dict(episode=noise))
    assert torch.equal(plain.action[:, :20], whole.action[:, :20]) and not torch.equal(plain.action[:, 20:], whole.action[:, 20:])

def test_an_ant_that_falls_adapts_when_its_episodes_are_over():
    "Ants with random torques fall at different times: each adapts after its second episode, alone as beside others, and the step of a fall is a death"
    w = presets.make_world('ant-dir', horizon=40)
    cfg = override(presets.preset('ant-dir', 'mql'), chunk=40, workers=2, initial_steps=40, replay_size=400, updates=2, rl_batch=8, history=4, context_units=8,
                   hidden=(8,), explore_episodes=2, new_updates=1, old_updates=1, old_batch=8, snapshot=20)
    gens = generators([3])
    state = mql.init(cfg, w, gens)
    for i in range(3):
        noise = mql.draw_noise(cfg, w, gens, i)
        state, _ = mql.update(cfg, w, state, mql.collect(cfg, w, state, noise), noise, i)
    agent, tested, g = mql.agent(cfg, state, True), with_episodes(w, 3), torch.Generator().manual_seed(0)
    shaken = dataclasses.replace(agent, act=lambda memory, obs, u: (u, torch.zeros_like(u[..., 0])))
    B, T = 6, tested.steps
    u = torch.randn(1, T//3, B, 8, generator=g).sign().repeat_interleave(3, 1) # the same torques for three steps
    reset, noise = torch.rand(1, T + 1, B, w.reset_noise, generator=g), torch.rand(1, 3, B, generator=g)
    def play(k): return list(scan(tested, shaken, torch.zeros(1, len(k), 1), u[:, :, k], reset[:, :, k], noise=dict(episode=noise[:, :, k])))
    steps = play(list(range(B)))
    ends, start = [s.seen.end[0] for s in steps], flat(agent.start(B)['actor'])['net.0.w'][0]
    adapted = torch.stack([(flat(s.memory['actor'])['net.0.w'][0] != start).flatten(1).any(1) for s in steps]) # [T,B]
    second = []
    for b in range(B):
        at = [-1, *(i for i, end in enumerate(ends) if end[b])]
        second.append(at[2])
        lengths = [at[k + 1] - at[k] for k in range(2)]
        assert adapted[:, b].tolist() == [i >= at[2] for i in range(len(steps))]
        memory = steps[-1].memory
        rows = from_rows(memory['rows'][0, b, :memory['count'][0, b]], w.obs_dim, 8)
        assert rows.step.tolist() == [i for n in lengths for i in range(n)]
        assert rows.died.tolist() == [float(i == n - 1 and n < 40) for n in lengths for i in range(n)]
        alone = play([b])[-1].memory
        for x, y in zip(flat(alone['actor']).values(), flat(memory['actor']).values()): assert torch.equal(x[:, 0], y[:, b])
    assert len(set(second)) > 2 and min(second) < 40 # several ants have fallen, at different times

@pytest.mark.parametrize('method', presets.METHODS)
def test_every_preset_fits(method):
    "Every preset of every method can begin in each of our worlds that the method accepts"
    for world in OURS:
        if presets.refusal(world, method): continue
        for name in presets.presets_of(world): presets.check(presets.preset(world, method, name), make_world(world), presets.method_of(world, method))

def test_the_pages_name_what_reduced_changes():
    "Every setting that `reduced` changes on the half cheetah, with its value"
    for method, page in dict(pearl='770_pearl', mql='775_mql', mier='780_mier').items():
        text = (Path(__file__).parents[1]/f'nbs/methods/{page}.ipynb').read_text(encoding='utf-8')
        said = text[text.index('The preset `reduced` is for a CPU.'):].split('lists the values')[0]
        for k, (v, _) in presets.changes('cheetah-vel', method, 'reduced').items():
            value = f'{len(v)} x {v[0]}' if isinstance(v, tuple) else f'{v:,}' if v >= 10_000 or k == 'first_size' else f'{v:g}'
            assert f'`{k}` ({value})' in said, (method, k, value)
