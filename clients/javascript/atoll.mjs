// A node of an Atoll federation in plain JavaScript, for Node.js 20 and browsers: docs/wire.md, written a second time.
// It trains softmax regression and fully connected networks by FedAvg, on data that stay where they are.

export class WireError extends Error {
  constructor(message, more) { super(message); Object.assign(this, { status: 0, problem: "format", ...more }); }
}
const must = (fine, message, more) => { if (!fine) throw new WireError(message, more); };

// --- records: safetensors whose metadata say what each field is; one spelling alone is read --------------------------
const TYPES = new Map(Object.entries({ F64: Float64Array, F32: Float32Array, F16: Uint16Array, BF16: Uint16Array,
  I64: BigInt64Array, I32: Int32Array, I16: Int16Array, I8: Int8Array, U8: Uint8Array, BOOL: Uint8Array }));
const LIMITS = { nbytes: 2 ** 30, header: 2 ** 20, fields: 10000, depth: 16, name: 512, text: 4096, dimensions: 16 };
const RESERVED = ["get", "items", "keys", "replace", "values"];
/** Fields by name, in order: a "record", or "tensors". A tensor is {dtype, shape, data}; 16-bit floats stay bits. */
export class Level extends Map {
  constructor(kind, entries) { super(entries); this.kind = kind; }
}
export const record = (fields = {}) => new Level("record", Object.entries(fields));
export const tensors = (fields = {}) => new Level("tensors", Object.entries(fields));
export const scalar = (value) => ({ dtype: "F32", shape: [], data: Float32Array.of(value) });

function floatText(value) { // as Python's float.hex
  if (!Number.isFinite(value)) return String(value).toLowerCase().replace("infinity", "inf");
  if (value === 0) return Object.is(value, -0) ? "-0x0.0p+0" : "0x0.0p+0";
  const bits = new BigUint64Array(Float64Array.of(value).buffer)[0], biased = Number((bits >> 52n) & 0x7ffn);
  const digits = (bits & 0xfffffffffffffn).toString(16).padStart(13, "0"), power = Math.max(biased, 1) - 1023;
  return `${value < 0 ? "-" : ""}0x${biased ? 1 : 0}.${digits}p${power < 0 ? "" : "+"}${power}`;
}
function floatOf(text) {
  const [, sign, digits, power] = /^(-?)0x([01]\.[0-9a-f]+)p([+-]\d+)$/.exec(text) ?? [];
  if (!digits) return { nan: NaN, inf: Infinity, "-inf": -Infinity }[text];
  return (sign ? -1 : 1) * Number(`0x${digits.replace(".", "").padEnd(14, "0")}`) * 2 ** (power - 52);
}
const SCALARS = { // kind -> whether a value is one, how it is written, how it is read; ints are BigInts
  int: [(v) => typeof v === "bigint", (v) => (v < 0n ? `-0x${(-v).toString(16)}` : `0x${v.toString(16)}`),
    (text) => (text[0] === "-" ? -BigInt(text.slice(1)) : BigInt(text))],
  float: [(v) => typeof v === "number", floatText, floatOf],
  bool: [(v) => typeof v === "boolean", String, (text) => text === "true"],
  str: [(v) => typeof v === "string" && v.isWellFormed(), String, String],
  none: [(v) => v === null, () => "", () => null],
};

function outline(level, depth, nodes, found) {
  const fits = depth <= LIMITS.depth && nodes.length - 1 + level.size <= LIMITS.fields;
  must(fits && ["record", "tensors"].includes(level.kind), "there are too many levels or fields, or unknown ones");
  for (const [name, value] of level) {
    must(name.isWellFormed() && [...name].length <= LIMITS.name, `${name} is no name, or too long`);
    must(level.kind === "tensors" ? value?.dtype : !RESERVED.includes(name), `${name} can be no field of this level`);
    if (value instanceof Level) {
      nodes.push([name, value.kind, value.size]); outline(value, depth + 1, nodes, found);
    } else if (value?.dtype) {
      const { dtype, shape, data } = value, numbers = shape.reduce((all, n) => all * n, 1);
      const fits = TYPES.has(dtype) && data instanceof TYPES.get(dtype) && shape.length <= LIMITS.dimensions;
      must(fits && data.length === numbers && (dtype !== "BOOL" || data.every((b) => b < 2)), `${name} is no tensor`);
      nodes.push([name, dtype, shape]); found.push(value);
    } else {
      const kind = Object.keys(SCALARS).find((each) => SCALARS[each][0](value)), text = SCALARS[kind]?.[1](value);
      must(kind && [...text].length <= LIMITS.text, `${name} cannot be written`);
      nodes.push([name, kind, text]);
    }
  }
}

/** A record as bytes, the same that any other implementation writes. */
export function encode(level) {
  const nodes = [["", "record", level.size]], found = [], starts = [];
  outline(level, 0, nodes, found);
  const width = (at) => found[at].data.BYTES_PER_ELEMENT, widest = (one, other) => width(other) - width(one);
  let size = 0;
  for (const at of [...found.keys()].sort(widest)) { starts[at] = size; size += found[at].data.byteLength; }
  const table = found.map(({ dtype, shape, data: { byteLength } }, at) => `,"${at}":{"dtype":"${dtype}",`
    + `"shape":${JSON.stringify(shape)},"data_offsets":[${starts[at]},${starts[at] + byteLength}]}`);
  const text = `{"__metadata__":{"record":${JSON.stringify(JSON.stringify(nodes))}}${table.join("")}}`;
  const head = new TextEncoder().encode(text), start = 8 + Math.ceil(head.length / 8) * 8;
  const blob = new Uint8Array(start + size).fill(32, 8, start);
  new DataView(blob.buffer).setBigUint64(0, BigInt(start - 8), true);
  blob.set(head, 8);
  found.forEach(({ data: d }, i) => blob.set(new Uint8Array(d.buffer, d.byteOffset, d.byteLength), start + starts[i]));
  return blob;
}

/** The record that these bytes are. Raises WireError for whatever `encode` does not write, to the byte. */
export function decode(bytes) {
  const blob = Uint8Array.from(bytes), { length, buffer } = blob, root = record(), above = []; // tensors view it
  let at = 0;
  try {
    const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
    must(length <= LIMITS.nbytes && start - 8 <= LIMITS.header && start <= length, "too long, or cut off");
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(blob.subarray(8, start));
    const head = JSON.parse(text), [[, , count], ...nodes] = JSON.parse(head.__metadata__.record);
    let level = root, left = count;
    for (const [name, kind, content] of nodes) {
      while (!left && above.length) [level, left] = above.pop();
      left -= 1;
      if (TYPES.has(kind)) {
        const [from, to] = head[at++].data_offsets, Numbers = TYPES.get(kind);
        const data = new Numbers(buffer, start + from, (to - from) / Numbers.BYTES_PER_ELEMENT);
        level.set(name, { dtype: kind, shape: content, data });
      } else if (kind in SCALARS) { level.set(name, SCALARS[kind][2](content)); } else {
        above.push([level, left]);
        level.set(name, (level = new Level(kind)));
        left = content;
      }
    }
    const again = encode(root);
    must(again.length === length && again.every((byte, at) => byte === blob[at]), "it is written otherwise");
  } catch (error) { must(false, `this is no record: ${error.message}`); }
  return root;
}

// --- training: data are {inputs: Float32Array [n * width], labels: [n], width, classes} ------------------------------
/** The layers of Flatten, Linear, ReLU, Linear ...: tensors "1.weight" [outs, ins], "1.bias" [outs], "3.weight" ... */
export function layersOf(params, { width, classes }) {
  const layers = [];
  for (let ins = width; 2 * layers.length < params.size; ins = layers.at(-1).outs) {
    const name = 2 * layers.length + 1, weight = params.get(`${name}.weight`), bias = params.get(`${name}.bias`);
    const outs = weight?.shape[0], fits = `${weight?.shape}` === `${[outs, ins]}` && `${bias?.shape}` === `${outs}`;
    must(fits && weight.dtype === "F32" && bias.dtype === "F32", `${name}: no layer of ${ins} inputs`);
    layers.push({ ins, outs, weight: weight.data, bias: bias.data });
  }
  must(layers.at(-1)?.outs === classes, `the model has other outputs than ${classes} classes`);
  return layers;
}

/** What each layer gives for one sample, the input first, the logits last; its loss; and the slope by the logits. */
function forward(layers, { inputs, labels, width }, at) {
  const seen = [inputs.subarray(at * width, (at + 1) * width)];
  for (const { ins, outs, weight, bias } of layers) {
    const before = seen.at(-1), after = Float64Array.from(bias), last = seen.length === layers.length;
    for (let o = 0; o < outs; o++) {
      for (let i = 0; i < ins; i++) after[o] += weight[o * ins + i] * before[i];
      if (!last && after[o] < 0) after[o] = 0;
    }
    seen.push(after);
  }
  const logits = seen.at(-1), top = Math.max(...logits), label = labels[at];
  const powers = logits.map((z) => Math.exp(z - top)), sum = powers.reduce((a, b) => a + b);
  const loss = Math.log(sum) + top - logits[label], right = logits.indexOf(top) === label;
  return { seen, loss, right, slope: powers.map((power, c) => power / sum - (c === label)) };
}

/** Of rows: the gradient of the mean loss, weight and bias of each layer in turn, and the sum of the losses. */
export function gradient(layers, data, rows) {
  const grads = layers.flatMap(({ weight, bias }) => [new Float64Array(weight.length), new Float64Array(bias.length)]);
  let total = 0;
  for (const at of rows) {
    const { seen, slope, loss } = forward(layers, data, at);
    let delta = slope.map((each) => each / rows.length);
    for (let l = layers.length - 1; l >= 0; l--) {
      const { ins, outs, weight } = layers[l], back = new Float64Array(ins);
      for (let o = 0; o < outs; o++) {
        grads[2 * l + 1][o] += delta[o];
        for (let i = 0; i < ins; i++) {
          grads[2 * l][o * ins + i] += delta[o] * seen[l][i];
          if (seen[l][i] > 0) back[i] += delta[o] * weight[o * ins + i]; // ReLU has let it through
        }
      }
      delta = back;
    }
    total += loss;
  }
  return { grads, total };
}

/** Rows of each batch, and how far it is. The order is uniformly random, and not the one of Python's nodes. */
function* batches(count, { epochs, steps, batch_size }, task) {
  const size = Math.min(batch_size ?? count, count), each = Math.ceil(count / size);
  const all = Math.min(steps ?? (task.epochs ?? epochs) * each, task.limit ?? Infinity);
  let order = Array.from({ length: count }, (_, at) => [at]);
  for (let step = 0; step < all; step++) {
    if (step % each === 0) order = order.map(([at]) => [at, Math.random()]).sort((a, b) => a[1] - b[1]);
    yield { rows: order.slice((step % each) * size, (step % each + 1) * size).map(([at]) => at), done: step / all };
  }
}

const reply = (sent, weight, sums) => record({ sent: record(sent), weight: scalar(weight),
  metrics: record(Object.fromEntries(Object.entries(sums).map(([name, value]) => [name, scalar(value)]))) });

/** FedAvg's program "train" with plain SGD. `tell(share)` is awaited before each step. */
export async function train(received, data, hyper, task = {}, tell = async () => {}) {
  const begun = received.get("params"), lr = received.get("lr").data[0], sums = { loss: 0, count: 0, steps: 0 };
  const update = new Level("tensors", [...begun].map(([name, t]) => [name, { ...t, data: t.data.slice() }]));
  const layers = layersOf(update, data), values = layers.flatMap(({ weight, bias }) => [weight, bias]);
  for (const { rows, done } of batches(data.labels.length, hyper, task)) {
    await tell(done);
    const { grads, total } = gradient(layers, data, rows);
    values.forEach((value, l) => value.forEach((w, at) => { value[at] = w - lr * grads[l][at]; }));
    sums.loss += total; sums.count += rows.length; sums.steps += 1;
  }
  for (const [name, { data: now }] of update) now.forEach((w, at) => { now[at] = w - begun.get(name).data[at]; });
  return reply({ update, buffers: tensors(), counters: tensors() }, Math.min(sums.count, data.labels.length), sums);
}

/** The program "evaluate": sums over samples, which the server pools. */
export function evaluate(received, data) {
  const layers = layersOf(received.get("params"), data), count = data.labels.length;
  const found = data.labels.map((_, at) => forward(layers, data, at));
  const loss = found.reduce((sum, each) => sum + each.loss, 0), accuracy = found.filter((each) => each.right).length;
  return reply({}, count, { count, loss, accuracy, accuracy_counted: count });
}

// --- the node: data are {width, classes, train, test?, validation?}, splits {inputs, labels} -------------------------
const pause = (seconds) => new Promise((done) => { setTimeout(done, 1000 * seconds); });
const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
const hash = async (bytes) => hex(await crypto.subtle.digest("SHA-256", bytes));

/** Takes part for `name`, with the data that `load(plan)` gives. `send` takes the place of fetch (see join.mjs). */
export class Client {
  constructor(url, name, load, { say = () => {}, send = (...request) => fetch(...request) } = {}) {
    Object.assign(this, { url, name, load, say, send, last: {}, beaten: 0, rested: 0 });
    this.headers = { "Atoll-Name": name, "Atoll-Session": crypto.randomUUID(), "Content-Type": "application/json" };
    this.ending = new AbortController();
  }
  /** A request, repeated after growing, random waits until it is answered: {status, ...message}, or a body's record. */
  async ask(method, path, message, body = message && JSON.stringify(message)) {
    for (let tries = 0; ; tries++) {
      const signal = AbortSignal.any([this.ending.signal, AbortSignal.timeout(120000)]);
      const sent = this.send(this.url + path, { method, body, signal, headers: this.headers });
      const heard = sent.then(async (found) => [found.status, await found.arrayBuffer()]);
      const [status, bytes] = await heard.catch((error) => [0, error.cause ?? error]);
      this.ending.signal.throwIfAborted();
      if (!status || status === 408 || status === 429 || status >= 500) {
        this.say(`waiting for the coordinator (${status || bytes.message || bytes.code})`);
        await pause(Math.min(60, 2 ** tries / 2) * (0.5 + Math.random()));
        continue;
      }
      if (status === 200 && path.startsWith("/v1/blob/")) {
        must(path.endsWith(await hash(bytes)), "a body has other bytes than its hash says");
        return decode(new Uint8Array(bytes));
      }
      const said = { ...JSON.parse(new TextDecoder().decode(bytes) || "{}"), status };
      if (status < 400 || status === 410 || "offset" in said || said.problem === "stale") return said;
      if (said.problem === "hash") return { offset: 0 }; // what had arrived is dropped
      must(said.problem === "unjoined" && path !== "/v1/join", said.message ?? `HTTP ${status}`, said);
      await this.join();
    }
  }
  async join() {
    const joining = { protocols: [1], software: "atoll.mjs 1", session: this.headers["Atoll-Session"] };
    const { plan, number } = await this.ask("POST", "/v1/join", joining), { hyper, method, model, loss } = plan;
    const more = ["momentum", "weight_decay", "clip", "channel", "down", "dp_sgd", "augment", "metrics"];
    const plain = method === "fedavg" && hyper.optimizer === "sgd" && !more.some((key) => ({ ...plan, ...hyper })[key]);
    const dense = /^(auto|logistic|2nn|mlp(:[\d, ]+)?)$/.test(model) && (loss ?? "cross_entropy") === "cross_entropy";
    must(plain && dense, `this client trains dense networks by fedavg with plain sgd, and not ${JSON.stringify(plan)}`);
    Object.assign(this, { plan, number, data: this.data ?? await this.load(plan) });
    const { width, classes, ...splits } = this.data, inputs = [{ name: "", dtype: "F32", shape: [width] }];
    const form = { inputs, targets: { name: "", dtype: "I64", shape: [] }, classes };
    for (const split of ["train", "validation", "test"]) form[split] = splits[split]?.labels.length ?? null;
    await this.ask("POST", "/v1/data", form);
  }
  /** Take part until the run is over. After `leave`, this ends with an AbortError. */
  async run() {
    await this.join();
    for (let task = {}; task.status !== 410; task = await this.ask("GET", "/v1/task?wait=25"))
      if (task.id) await this.perform(task);
  }
  leave() {
    this.ending.abort();
    return this.send(`${this.url}/v1/leave`, { method: "POST", headers: this.headers });
  }
  async perform(task) {
    const path = `/v1/task/${task.id}`;
    try {
      const answer = this.last.id !== task.id && { client: BigInt(this.number), reply: await this.work(task) };
      if (answer) this.last = { id: task.id, blob: encode(record(answer)) };
    } catch (error) {
      if (["gone", "stale"].includes(error.problem)) return void await pause(1);
      if (error.status || this.ending.signal.aborted) throw error;
      const kind = error.problem === "refused" ? "refused" : "raised", reason = error.message.slice(0, 4000);
      return void await this.ask("POST", `${path}/failure`, { kind, reason });
    }
    const { blob } = this.last, sha256 = await hash(blob);
    let said = { offset: 0 };
    while (!said.done && said.problem !== "stale") { // what has arrived stays; a part is 1 MB
      const query = `offset=${said.offset}&size=${blob.length}&sha256=${sha256}`;
      said = await this.ask("PUT", `${path}/answer?${query}`, null, blob.subarray(said.offset, said.offset + 2 ** 20));
    }
    this.say(`round ${task.round}, ${task.program}: ${said.refused ?? (said.done ? "answered" : "too late")}`);
  }
  async work(task) {
    const body = ({ sha256 }) => this.ask("GET", `/v1/blob/${sha256}`);
    const received = await body(task.shared), [program, split = "test"] = task.program.split(" on ");
    for (const [name, value] of task.own ? await body(task.own) : []) received.set(name, value);
    const part = this.data[program === "train" ? "train" : split], data = { ...this.data, ...part };
    must(part && ["train", "evaluate"].includes(program), `this client has no ${task.program}`, { problem: "refused" });
    const tell = (done) => this.tell(task, done);
    return program === "evaluate" ? evaluate(received, data) : train(received, data, this.plan.hyper, task, tell);
  }
  /** A sign of life every 10 seconds, and room for whatever else a page has to do. */
  async tell({ id: task }, done) {
    const now = performance.now();
    if (now - this.rested > 200) { await pause(0); this.rested = performance.now(); }
    if (now - this.beaten > 10000) {
      this.beaten = now;
      const { wanted } = await this.ask("POST", "/v1/beat", { task, done });
      must(wanted, "the task is no longer wanted", { problem: "stale" });
    }
  }
}
