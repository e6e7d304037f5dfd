"use strict";
// One run as the page knows it: events go in (as in the log, or thinned by atoll.runs.digest), columns come out.

const { Run, IDLE, WORKING, DONE, REFUSED, DROPPED, ABSENT, NEWCOMER } = (() => {
  const { known, quantiles } = Base;
  const [IDLE, WORKING, DONE, REFUSED, DROPPED, ABSENT, NEWCOMER] = [0, 1, 2, 3, 4, 5, 6];
  const ROUNDS_WITH_COLUMNS = 60;
  const EVALUATIONS = 48; // with a value for each client; twice what a digest keeps
  const COLUMNS = ["loss", "samples", "norm", "cosine", "work", "start", "end", "began", "download", "compute", "upload", "done", "staleness", "kept"];

  /** A set of clients: their numbers, or a bit for each where that is smaller. */
  class Clients {
    constructor(source) {
      if (source && source.bits !== undefined) {
        const text = atob(source.bits);
        this.bits = Uint8Array.from(text, (c) => c.charCodeAt(0));
        this.size = 0;
        for (let byte of this.bits) for (; byte; byte &= byte - 1) this.size += 1;
      } else {
        const list = source ? source.gaps || source : [];
        this.list = new Uint32Array(list.length);
        let last = 0;
        list.forEach((value, i) => {
          last = source.gaps ? last + value : value;
          this.list[i] = last;
        });
        this.size = list.length;
      }
    }

    /** Call with each client, ascending. */
    each(visit) {
      if (this.list) { this.list.forEach((client, i) => visit(client, i)); return; }
      let place = 0;
      for (let index = 0; index < this.bits.length; index++) {
        for (let byte = this.bits[index]; byte; byte &= byte - 1) {
          visit(index * 8 + 31 - Math.clz32(byte & -byte), place);
          place += 1;
        }
      }
    }

    has(client) {
      if (this.bits) return Boolean((this.bits[client >> 3] >> (client & 7)) & 1);
      let [low, high] = [0, this.list.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (this.list[middle] < client) low = middle + 1; else high = middle;
      }
      return this.list[low] === client;
    }

    toArray() {
      const found = [];
      this.each((client) => found.push(client));
      return found;
    }
  }

  class Run {
    constructor(name, events = [], status = null) {
      this.name = name;
      this.told = status; // what the server says, which can see who holds the folder
      this.start = {};
      this.audit = null; // what `atoll audit` found, for the page
      this.partition = null;
      this.clients = 0;
      this.planned = 0;
      this.measure = "accuracy";
      this.judged = [];
      this.place = null; // client -> position among those judged
      this.links = new Map(); // of a peer: to others, by name
      this.rounds = [];
      this.evaluations = [];
      this.problems = new Map();
      this.refusals = new Map();
      this.attackers = new Set(); // who lies, in a simulation of that
      this.away = new Set(); // who left by the clock, and has not come back
      this.affinity = null;
      this.confusion = null; // of the last evaluation: its round, and counts by label and predicted class
      this.engine = null;
      this.checkpoint = null;
      this.working = null;
      this.ending = null;
      this.resumed = 0;
      this.newest = 0; // time of the last event
      this._size(0);
      for (const event of events) this.apply(event);
    }

    _size(clients) {
      this.clients = clients;
      this.count = new Uint32Array(clients);
      this.lastRound = new Uint32Array(clients);
      this.state = new Uint8Array(clients);
      for (const name of ["lastLoss", "lastNorm", "lastCosine"]) this[name] = new Float32Array(clients).fill(NaN);
    }

    // --- events -------------------------------------------------------------------------------------------

    apply(event) {
      const handler = this[`on_${event.event}`];
      if (!handler) return false;
      if (known(event.time)) this.newest = Math.max(this.newest, event.time);
      handler.call(this, event);
      return true;
    }

    on_start(event) {
      this.start = event;
      this.name = this.name || event.run;
      this.measure = event.measure || "accuracy";
      this.planned = event.rounds || 0;
      this._size(Math.min(event.clients || 0, 5e6));
    }

    on_partition(event) {
      this.partition = event;
      this.judged = event.judged || [];
      this.attackers = new Set(event.attackers || []);
      this.place = new Int32Array(this.clients).fill(-1);
      this.judged.forEach((client, i) => { this.place[client] = i; });
      this._absent(1);
    }

    /** Mark those who are not there in a round: they join later, have left, or never take part. */
    _absent(round) {
      const { joins, leaves, newcomers } = this.partition || {};
      for (const [client, first] of Object.entries(joins || {})) if (round < first) this.state[client] = ABSENT;
      for (const [client, first] of Object.entries(leaves || {})) if (round >= first) this.state[client] = ABSENT;
      for (const client of newcomers || []) this.state[client] = NEWCOMER;
      for (const client of this.away) this.state[client] = ABSENT;
    }

    on_begin(event) {
      this.working = { round: event.round, cohort: new Clients(event.cohort) };
      this.working.cohort.each((client) => { this.state[client] = WORKING; });
    }

    on_engine(event) { this.engine = event; }
    on_affinity(event) { if (event.clients && event.clients.length) this.affinity = event; }
    /** What a peer has said to another one and heard of it, in all rounds so far. */
    _link(name, link, round) {
      const before = this.links.get(name) || { sent: 0, received: 0, missed: 0, heard: 0 };
      const missed = before.missed + (link.heard < round && (link.gone || link.heard > 0) ? 1 : 0);
      this.links.set(name, { ...link, sent: before.sent + link.sent, received: before.received + link.received, missed });
    }

    on_crypto(event) { this.said = event.said; }
    on_checkpoint(event) { this.checkpoint = event; }
    on_resume(event) { this.resumed += 1; this.planned = event.rounds || this.planned; this.ending = null; }
    on_result(event) { this.ending = event; this._rest(); }

    on_error(event) {
      this.ending = event;
      this._rest();
      if (event.kind !== "Interrupted" && event.kind !== "Terminated") {
        this._problem("error", event.kind || "error", event.message || "", [], event.round);
      }
    }

    on_problem(event) {
      this._problem("problem", event.where || "", event.message || "", [], null, event.count || 1);
    }

    on_latest(event) {
      new Clients(event.clients).each((client, i) => {
        this._last(client, event.round[i], event.loss[i], event.norm[i], event.cosine[i]);
      });
    }

    on_round(event) {
      const cohort = new Clients(event.cohort);
      const before = this.rounds[this.rounds.length - 1];
      const round = {
        round: event.round, time: event.time, loss: event.loss, seconds: event.seconds, cohort,
        up: event.bytes_up || 0, down: event.bytes_down || 0, counted: known(event.bytes_up) || known(event.bytes_down),
        allUp: (before ? before.allUp : 0) + (event.bytes_up || 0),
        allDown: (before ? before.allDown : 0) + (event.bytes_down || 0),
        allSeconds: (before ? before.allSeconds : 0) + (event.seconds || 0),
        dropped: event.dropped ? new Clients(event.dropped) : null, refused: [], partial: event.partial || 0,
        quantiles: event.quantiles || {}, columns: null, evaluation: null,
        clock: event.clock ? { ...event.clock, ...Object.fromEntries(["late", "failed", "came", "left"].map((name) => [name, new Clients(event.clock[name])])) } : null,
        spent: event.spent || null,
        allEnergy: (before ? before.allEnergy : 0) + (event.clock ? event.clock.energy : 0),
      };
      Object.entries(event.links || {}).forEach(([name, link]) => this._link(name, link, event.round));
      if (round.clock) {
        round.clock.came.each((client) => this.away.delete(client));
        round.clock.left.each((client) => this.away.add(client));
      }
      this.state.fill(IDLE);
      this._absent(event.round);
      cohort.each((client) => {
        this.count[client] += 1;
        this.lastRound[client] = event.round;
        this.state[client] = DONE;
      });
      if (event.clients) this._columns(round, event.clients);
      this._trouble(round, event.refused);
      if (event.evaluation) this._evaluation(round, event.evaluation);
      this.rounds.push(round);
      const old = this.rounds[this.rounds.length - 1 - ROUNDS_WITH_COLUMNS];
      if (old) old.columns = null;
      this.working = null;
    }

    // --- what a round brings ------------------------------------------------------------------------------

    _columns(round, columns) {
      round.columns = {};
      for (const name of COLUMNS) {
        if (!columns[name]) continue;
        round.columns[name] = Float64Array.from(columns[name], (v) => (v === null ? NaN : v));
        if (name === "norm" || name === "cosine" || name === "loss") {
          const found = quantiles(round.columns[name]);
          if (found) round.quantiles[name] = found;
        }
      }
      const { loss, norm, cosine, work } = round.columns;
      if (round.clock && !round.clock.stale) round.clock.stale = this._stale(round);
      if (work) round.partial = work.filter((share) => share < 1).length;
      round.cohort.each((client, i) => {
        this._last(client, round.round, loss && loss[i], norm && norm[i], cosine && cosine[i]);
      });
    }

    /** How many replies were used that were of which staleness: [[staleness, replies], ...]. */
    _stale(round) {
      const tally = new Map();
      for (const order of this.ordersOf(round)) if (order.used) tally.set(order.staleness, (tally.get(order.staleness) || 0) + 1);
      return [...tally].sort((a, b) => a[0] - b[0]);
    }

    _last(client, round, loss, norm, cosine) {
      if (client >= this.clients) return;
      if (known(loss)) this.lastLoss[client] = loss;
      if (known(norm)) this.lastNorm[client] = norm;
      if (known(cosine)) this.lastCosine[client] = cosine;
    }

    _trouble(round, refused) {
      if (round.dropped && round.dropped.size) {
        const late = round.dropped.toArray();
        for (const client of late) this.state[client] = DROPPED;
        this._problem("dropped", "too slow", "slower than the method accepts; the reply was not waited for", late, round.round);
      }
      const groups = Array.isArray(refused)
        ? refused.map(([reason, clients]) => [reason, new Clients(clients).toArray()])
        : Object.entries(refused || {}).map(([client, reason]) => [reason, [Number(client)]]);
      for (const [reason, clients] of groups) {
        for (const client of clients) {
          this.state[client] = REFUSED;
          round.refused.push(client);
          if (!this.refusals.has(client)) this.refusals.set(client, []);
          this.refusals.get(client).push({ round: round.round, reason });
        }
        this._problem("refused", "reply refused", reason, clients, round.round);
      }
    }

    _problem(kind, where, text, clients, round, count = Math.max(1, clients.length)) {
      const key = `${kind}\n${where}\n${text}`;
      if (!this.problems.has(key)) {
        this.problems.set(key, { kind, where, text, count: 0, clients: new Set(), first: round, last: round });
      }
      const found = this.problems.get(key);
      found.count += count;
      found.last = round;
      for (const client of clients) if (found.clients.size < 10000) found.clients.add(client);
    }

    _evaluation(round, evaluation) {
      round.evaluation = { overall: evaluation.overall || {}, clients: evaluation.clients || {}, personal: evaluation.personal || {}, newcomers: evaluation.newcomers || {}, validation: evaluation.validation || {} };
      round.consensus = evaluation.consensus ?? null; // of peers without a server
      if (evaluation.confusion) this.confusion = { round: round.round, ...evaluation.confusion };
      const each = evaluation.each || {};
      const values = {};
      for (const kind of ["clients", "personal"]) {
        const found = each[kind] && (each[kind][this.measure] || Object.values(each[kind])[0]);
        if (found) values[kind] = Float32Array.from(found, (v) => (v === null ? NaN : v));
      }
      if (!values.clients && !values.personal) return;
      this.evaluations.push({ round: round.round, ...values });
      if (this.evaluations.length > EVALUATIONS) { // every other one goes, never the first or the last
        const last = this.evaluations.length - 1;
        this.evaluations = this.evaluations.filter((e, i) => i === last || i % 2 === 0);
      }
    }

    _rest() {
      for (let client = 0; client < this.clients; client++) if (this.state[client] === WORKING) this.state[client] = IDLE;
      this.working = null;
    }

    // --- answers ------------------------------------------------------------------------------------------

    /** "running", "finished", "stopped", "failed", "cut off", or "unfinished" where nobody can tell. */
    get status() {
      if (this.ending) {
        if (this.ending.event === "result") return "finished";
        return ["Interrupted", "Terminated"].includes(this.ending.kind) ? "stopped" : "failed";
      }
      return this.told && this.told !== "finished" ? this.told : "unfinished";
    }

    /** Where its folder was when it began. */
    get folder() { return this.start.path || `runs/${this.start.run || this.name}`; }

    /** Whether going on may help: a run that diverged would diverge again. */
    get resumable() {
      const diverged = this.ending && this.ending.kind === "DivergedError";
      return Boolean(this.checkpoint) && !diverged && ["stopped", "failed", "cut off", "unfinished"].includes(this.status);
    }

    /** Whether the run says what it sends, as far as one can tell. */
    get counted() { return !this.last || this.rounds.some((round) => round.counted); }
    get lowIsGood() { return this.measure !== "accuracy"; }
    get title() { return [this.start.method, this.start.data].filter(Boolean).join(" on ") || this.name; }
    get last() { return this.rounds[this.rounds.length - 1] || null; }
    get played() { return this.last ? this.last.round : 0; }

    /** Whether the run has a virtual clock. */
    get clocked() { return this.rounds.length > 0 && this.rounds[0].clock !== null; }

    /** Whether updates are blurred, which spends privacy. */
    get blurred() { return Boolean(this.last && this.last.spent); }

    /** The epsilon that may be spent, or null. */
    get budget() { return (this.start.config || {}).epsilon ?? null; }

    /** What is promised: as the result says (`exact`), or up to now. */
    get promised() {
      const { ending, last } = this;
      const spent = this.rounds.filter((r) => r.spent);
      if (ending && ending.privacy) return { exact: true, epsilon: ending.epsilon, delta: ending.delta, private: ending.private, text: ending.privacy };
      const { epsilon, delta, level } = last.spent;
      const all = spent.every((r) => r.spent.private);
      const said = `epsilon is at most ${known(epsilon) ? Base.number(epsilon, 3) : "infinite"} at delta = ${delta} for every ${level} after ${Base.plural(spent.length, "round")}`;
      const { samples_epsilon: beside, samples_delta: chance } = last.spent;
      const more = known(chance) ? `. Single samples: at most ${known(beside) ? Base.number(beside, 3) : "infinite"} at delta = ${Base.number(chance, 3)}, were the noise of steps secret` : "";
      return { exact: false, epsilon, delta, private: all, text: `${all ? said : `no promise: noise followed from a seed; were it secret, ${said}`}${more}` };
    }

    /** What a round says of its clients' orders on the virtual clock. One that is `kept` is done in a later round. */
    ordersOf(round) {
      const { began, download, compute, upload, done, staleness, samples, loss, end } = round.columns || {};
      if (!round.clock || !began || !done) return [];
      const keeps = (this.start.config || {}).late === "keep";
      const found = [];
      round.cohort.each((client, i) => {
        if (!known(began[i]) || !known(done[i])) return;
        const used = [samples, loss, end].some((column) => column && known(column[i]));
        const late = round.clock.late.has(client);
        found.push({
          client, round: round.round, began: began[i], done: done[i], used, late, failed: !used && round.clock.failed.has(client), kept: keeps && late && !used,
          parts: [download, compute, upload].map((column) => (column && known(column[i]) ? column[i] : 0)), staleness: staleness ? staleness[i] : 0,
        });
      });
      return found;
    }

    /** The last round that was evaluated. */
    get judgedLast() {
      for (let i = this.rounds.length - 1; i >= 0; i--) if (this.rounds[i].evaluation) return this.rounds[i];
      return null;
    }

    /** How the main measure of what clients would use is spread: of their own models, or else of the global one. */
    ownOf(evaluation) { return evaluation.personal[this.measure] || evaluation.clients[this.measure] || null; }

    /** The figure to look at first: the mean over clients of what they would use, else that of the test set. */
    mainOf(evaluation) {
      const own = this.ownOf(evaluation);
      return own ? own.mean : evaluation.overall[this.measure];
    }

    get eachLast() { return this.evaluations[this.evaluations.length - 1] || null; }
    get eachFirst() { return this.evaluations[0] || null; }

    get personalised() {
      const last = this.judgedLast;
      return Boolean(this.start.personalised || (last && Object.keys(last.evaluation.personal).length));
    }

    nameOf(client) {
      const names = this.partition && this.partition.names;
      const name = names ? names[client] : null;
      return name === null || name === undefined || /^\d*$/.test(name) ? `client ${name || client}` : String(name);
    }

    /** The name, cut where it would fill a paragraph. */
    briefOf(client) {
      const name = this.nameOf(client);
      return name.length > 40 ? `${name.slice(0, 39)}…` : name;
    }

    sizeOf(client) {
      const sizes = this.partition && this.partition.sizes;
      return sizes ? sizes[client] : null;
    }

    /** A client's value in an evaluation, or NaN. */
    valueOf(client, kind, evaluation = this.eachLast) {
      const place = this.place ? this.place[client] : -1;
      if (!evaluation || !evaluation[kind] || place < 0 || place === undefined) return NaN;
      return evaluation[kind][place];
    }

    /** What a client gains by its personal model; positive is better, whatever the measure. */
    gainOf(client, evaluation = this.eachLast) {
      const difference = this.valueOf(client, "personal", evaluation) - this.valueOf(client, "clients", evaluation);
      return this.lowIsGood ? -difference : difference;
    }

    /** Seconds that the remaining rounds will take at the pace of the last ones, or null. */
    get remaining() {
      const recent = this.rounds.slice(-11);
      if (recent.length < 2 || !this.planned) return null;
      const pace = (recent[recent.length - 1].time - recent[0].time) / (recent.length - 1);
      return Math.max(0, this.planned - this.played) * pace;
    }

    get seconds() {
      if (this.ending && known(this.ending.seconds)) return this.ending.seconds;
      return this.newest && this.start.time ? this.newest - this.start.time : null;
    }
  }

  return { Run, IDLE, WORKING, DONE, REFUSED, DROPPED, ABSENT, NEWCOMER };
})();
