// The gridworld and its trained agents in plain JavaScript: half-precision weights, arithmetic in double precision.
// The same equations as in ldm_nb (pages gridworld, encoder, policy, decoder); a test compares every action with PyTorch's.
'use strict';
const SIDE = 7, HORIZON = 30, EPISODES = 4, STEPS = HORIZON*EPISODES, HIT = 1, MISS = -0.1;
const MOVES = [[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]];              // stay, up, right, down, left
const CELLS = Array.from({length: SIDE*SIDE}, (_, i) => [Math.floor(i/SIDE), i % SIDE]); // cell 7x + y
const ring = ([x, y]) => Math.max(x, y);
const kindOf = cell => [2, 6].includes(ring(cell)) ? 'train' : ring(cell) < 2 ? 'never' : 'test';
const same = (a, b) => a[0] === b[0] && a[1] === b[1];

function half(bits) {                                                   // IEEE half precision -> number
  const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  return sign*(exponent ? 2**(exponent - 15)*(1 + fraction/1024) : 2**-14*fraction/1024);
}

function unpack(net) {                                                  // {data: base64, at: name -> [offset, rows, columns], single: 4 bytes a number}
  const bytes = Uint8Array.from(atob(net.data), c => c.charCodeAt(0)), view = new DataView(bytes.buffer), params = {};
  for (const [name, [offset, rows, columns]] of Object.entries(net.at)) {
    const values = new Float64Array(rows*columns);
    for (let i = 0; i < values.length; i++) values[i] = net.single ? view.getFloat32(offset + 4*i, true) : half(view.getUint16(offset + 2*i, true));
    params[name] = {rows, columns, values};
  }
  return params;
}

function linear(w, b, x) {                                              // x W + b
  const out = Float64Array.from(b.values);
  for (let i = 0; i < w.rows; i++) {
    if (x[i] === 0) continue;
    for (let j = 0, at = i*w.columns; j < w.columns; j++) out[j] += x[i]*w.values[at + j];
  }
  return out;
}
const layer = (p, name, x) => linear(p[name + '.w'], p[name + '.b'], x);
const relu = x => x.map(v => Math.max(v, 0)), sigmoid = v => 1/(1 + Math.exp(-v));
const join = (a, b) => Float64Array.from([...a, ...b]);

function remember(p, encoder, memory, observation, reward) {            // one step of a GRU
  const x = join(relu(layer(p, encoder + '.state', observation)), relu(layer(p, encoder + '.reward', [reward])));
  const fromX = linear(p[encoder + '.gru.w_x'], p[encoder + '.gru.b_x'], x);
  const fromH = linear(p[encoder + '.gru.w_h'], p[encoder + '.gru.b_h'], memory), n = memory.length;
  return memory.map((h, i) => {
    const reset = sigmoid(fromX[i] + fromH[i]), update = sigmoid(fromX[n + i] + fromH[n + i]);
    return (1 - update)*Math.tanh(fromX[2*n + i] + reset*fromH[2*n + i]) + update*h;
  });
}
const posterior = (p, encoder, memory) => ({mu: layer(p, encoder + '.mu', memory), logvar: layer(p, encoder + '.logvar', memory)});
const blank = p => new Float64Array(p['encoder.gru.w_h'].rows);
const believer = p => p['vae.decoder.out.w'] ? 'vae.encoder' : p['decoder.out.w'] ? 'encoder' : null; // LDM has two encoders, variBAD one, RL2 no decoder

function action(p, memory) {                                            // the most probable one
  const {mu, logvar} = posterior(p, 'encoder', memory);
  let x = join(mu, logvar);
  for (let k = 0; p[`heads.actor.${k}.w`]; k++) x = layer(p, 'heads.actor.' + k, x).map(Math.tanh);
  const logits = layer(p, 'heads.logits', x);
  return logits.indexOf(Math.max(...logits));
}
const move = (cell, a) => cell.map((v, i) => Math.min(Math.max(v + MOVES[a][i], 0), SIDE - 1));

function begin() { return {cell: [0, 0], step: 0, returns: [0, 0, 0, 0], found: [false, false, false, false]}; }
function act(state, goal, a) {                                          // one step of a trial; the cell reached, before any reset
  const reached = move(state.cell, a), hit = same(reached, goal), episode = Math.floor(state.step/HORIZON);
  const end = (state.step + 1) % HORIZON === 0, returns = [...state.returns], found = [...state.found];
  returns[episode] += hit ? HIT : MISS; found[episode] ||= hit;
  return {cell: end ? [0, 0] : reached, step: state.step + 1, returns, found, reached, reward: hit ? HIT : MISS, end};
}

function play(p, goal) {                                                // a whole trial of an agent: a list of STEPS + 1 moments
  let state = begin(), memory = blank(p), latent = believer(p) && blank(p);
  const moments = [{...state, reached: [0, 0], latent}];
  for (let t = 0; t < STEPS; t++) {
    const a = action(p, memory);
    state = act(state, goal, a);
    const observation = [...state.reached, +state.end];
    memory = remember(p, 'encoder', memory, observation, state.reward);
    if (latent) latent = believer(p) === 'encoder' ? memory : remember(p, 'vae.encoder', latent, observation, state.reward);
    moments.push({...state, action: a, latent});
  }
  return moments;
}

function numbers(seed) {                                                // uniform random numbers, the same for a seed (xorshift)
  let s = (seed*2654435761 >>> 0) || 1;
  return () => { s ^= s << 13; s ^= s >>> 17; s ^= s << 5; return (s >>> 0)/4294967296; };
}

function rewardOf(logit) { return MISS + (HIT - MISS)*sigmoid(logit); }  // expected reward of reaching a cell
function decoded(p, latent, uniform, keep) {                            // expected reward of every cell, with one dropout mask each
  const name = believer(p) === 'encoder' ? 'decoder' : 'vae.decoder';
  const rest = x => { for (let k = 0; p[`${name}.layers.${k}.w`]; k++) x = relu(layer(p, `${name}.layers.${k}`, x)); return layer(p, name + '.out', x); };
  if (!p[name + '.state.w']) return rest(latent).map(rewardOf);         // a decoder with one output for each cell
  return CELLS.map(cell => rewardOf(rest(join(latent, relu(layer(p, name + '.state', [...cell, 0])).map(v => uniform() < keep ? v/keep : 0)))[0]));
}

function rewards(p, draw, {dropout = 0.7, samples = 32, seed = 1} = {}) { // mean over latents from `draw(normal)` and dropout masks
  const uniform = numbers(seed), normal = () => Math.sqrt(-2*Math.log(1 - uniform()))*Math.cos(2*Math.PI*uniform());
  const total = new Float64Array(CELLS.length);
  for (let s = 0; s < samples; s++) decoded(p, draw(normal), uniform, 1 - dropout).forEach((r, c) => { total[c] += r/samples; });
  return total;
}
function belief(p, memory, options) {                                   // what the latent dynamics network expects of every cell
  const {mu, logvar} = posterior(p, believer(p), memory);
  return rewards(p, normal => mu.map((m, i) => m + Math.exp(logvar[i]/2)*normal()), options);
}

function exact(moments, t) {                                            // belief of an observer who knows that each of 45 cells is equally likely
  const open = CELLS.map(c => +(kindOf(c) !== 'never'));
  for (const m of moments.slice(1, t + 1)) {
    if (m.reward === HIT) return CELLS.map(c => +same(c, m.reached));
    open[SIDE*m.reached[0] + m.reached[1]] = 0;
  }
  const sum = open.reduce((a, b) => a + b, 0);
  return open.map(v => sum ? v/sum : 0);
}

function stretch(raw, beta) {                                           // Eq. (1): weights that sum to 1, stretched about their mean
  const sum = raw.reduce((a, b) => a + b, 0) || 1;
  return raw.map(v => beta*v/sum - (beta - 1)/raw.length);
}
function imagine(p, goals, weights, options) {                          // rewards of the mixture of the beliefs at the end of some tasks
  const ends = goals.map(g => posterior(p, believer(p), play(p, g)[STEPS].latent).mu);
  const mixed = ends[0].map((_, i) => weights.reduce((sum, w, k) => sum + w*ends[k][i], 0));
  return rewards(p, () => mixed, options);
}
if (typeof module !== 'undefined') module.exports = {unpack, play, belief, exact, stretch, imagine, rewards, believer, CELLS};
