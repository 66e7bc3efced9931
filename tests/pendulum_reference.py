"""How many frames plain loops need on gymnasium's Pendulum-v1: `python tests/pendulum_reference.py sac|td3 SEED [RANDOM]`.

Single-seed loops in plain torch, written for this purpose and independent of the package: SAC with a learned temperature and TD3, with the settings of
CleanRL's sac_continuous_action.py and td3_continuous_action.py. RANDOM is the number of random steps before the first update; ours is 1000, CleanRL has
5000 for SAC and 25,000 for TD3. Prints the mean greedy return of ten starts after every 500 frames, and ends when it is above -200.
"""
import copy, sys
import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

GAMMA, TAU, BATCH, MOST = .99, .005, 256, 40_000

def net(i, o): return nn.Sequential(nn.Linear(i, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, o))
def q(critic, obs, act): return critic(torch.cat([obs, act], 1))
def adam(lr, *parts): return torch.optim.Adam([x for p in parts for x in p.parameters()], lr=lr)
def descend(opt, loss): opt.zero_grad(); loss.backward(); opt.step()

class Sac:
    "Soft actor-critic, its entropy aimed at -1"
    noise, delay = None, 1
    def __init__(self):
        self.pi, self.critics = net(3, 2), [net(4, 1), net(4, 1)]
        self.slow, self.log_alpha = copy.deepcopy(self.critics), torch.zeros(1, requires_grad=True)
        self.q_opt, self.pi_opt, self.a_opt = adam(1e-3, *self.critics), adam(3e-4, self.pi), torch.optim.Adam([self.log_alpha], lr=1e-3)
    def sample(self, obs):
        mean, spread = self.pi(obs).chunk(2, -1)
        normal = torch.distributions.Normal(mean, (-5 + 3.5*(torch.tanh(spread) + 1)).exp())
        x = normal.rsample()
        return 2*torch.tanh(x), (normal.log_prob(x) - torch.log(2*(1 - torch.tanh(x)**2) + 1e-6)).sum(-1, keepdim=True)
    def explore(self, obs): return self.sample(obs)[0]
    def greedy(self, obs): return 2*torch.tanh(self.pi(obs).chunk(2, -1)[0])
    def learn(self, s, a, r, n, t):
        with torch.no_grad():
            b, logp = self.sample(n)
            y = r + GAMMA*(torch.min(*(q(c, n, b) for c in self.slow)) - self.log_alpha.exp()*logp)
        descend(self.q_opt, sum(mse_loss(q(c, s, a), y) for c in self.critics))
        for _ in range(2*(t % 2 == 0)):
            b, logp = self.sample(s)
            descend(self.pi_opt, (self.log_alpha.exp().detach()*logp - torch.min(*(q(c, s, b) for c in self.critics))).mean())
            with torch.no_grad(): logp = self.sample(s)[1]
            descend(self.a_opt, (-self.log_alpha.exp()*(logp - 1)).mean())
        return list(zip(self.critics, self.slow))

class Td3:
    "Twin delayed deep deterministic policy gradient"
    def __init__(self):
        self.pi, self.critics = net(3, 1), [net(4, 1), net(4, 1)]
        self.slow, self.slow_pi = copy.deepcopy(self.critics), copy.deepcopy(self.pi)
        self.q_opt, self.pi_opt = adam(3e-4, *self.critics), adam(3e-4, self.pi)
    def explore(self, obs): return (self.greedy(obs) + .2*torch.randn(1, 1)).clamp(-2, 2)
    def greedy(self, obs): return 2*torch.tanh(self.pi(obs))
    def learn(self, s, a, r, n, t):
        with torch.no_grad():
            b = (2*torch.tanh(self.slow_pi(n)) + 2*(.2*torch.randn_like(a)).clamp(-.5, .5)).clamp(-2, 2)
            y = r + GAMMA*torch.min(*(q(c, n, b) for c in self.slow))
        descend(self.q_opt, sum(mse_loss(q(c, s, a), y) for c in self.critics))
        if t % 2: return []
        descend(self.pi_opt, -q(self.critics[0], s, self.greedy(s)).mean())
        return [*zip(self.critics, self.slow), (self.pi, self.slow_pi)]

@torch.no_grad()
def greedy_return(agent, env):
    total = 0
    for k in range(10):
        obs, _ = env.reset(seed=1000 + k)
        for _ in range(200):
            obs, reward, *_ = env.step(agent.greedy(torch.tensor(obs)[None])[0].numpy())
            total += reward/10
    return total

def main(algorithm, seed, random):
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng, env, test = np.random.default_rng(seed), gym.make('Pendulum-v1'), gym.make('Pendulum-v1')
    agent, rows = dict(sac=Sac, td3=Td3)[algorithm](), [np.zeros((MOST, k), np.float32) for k in (3, 1, 1, 3)]
    obs, _ = env.reset(seed=seed)
    for t in range(MOST):
        with torch.no_grad(): act = agent.explore(torch.tensor(obs)[None])[0].numpy() if t >= random else rng.uniform(-2, 2, 1).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(act)
        for row, x in zip(rows, (obs, act, reward, after)): row[t] = x
        obs = env.reset()[0] if terminated or truncated else after
        if t > random:
            pick = rng.integers(0, t + 1, BATCH)
            for net, slow in agent.learn(*(torch.from_numpy(x[pick]) for x in rows), t):
                for p, old in zip(net.parameters(), slow.parameters()): old.data.lerp_(p.data, TAU)
        if (t + 1) % 500 == 0 and t >= random:
            value = greedy_return(agent, test)
            print(algorithm, seed, random, t + 1, round(value, 1), flush=True)
            if value > -200: break

if __name__ == '__main__': main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1000)
