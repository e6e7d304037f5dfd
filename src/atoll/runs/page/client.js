"use strict";
// All that is known of one client, in a dialog beside the page.

const ClientView = (() => {
  const { $, h, setText, figures, known, number, count, percent, score, tickScore, gain, plural, color, tip } = Base;
  let run = null;
  let client = 0;
  let others = [];
  let lines = null;
  let strip = null;
  let mix = null;
  const dialog = $("#client");

  /** Show a client; the arrows go through `among`. */
  function open(now, k, among) {
    run = now;
    client = k;
    others = among && among.length ? among : Array.from({ length: run.clients }, (_, i) => i);
    if (!dialog.open) dialog.showModal();
    make();
    update(run);
  }

  function make() {
    if (lines) return;
    lines = new Lines($("#client-curve"), { text: (v) => score(run.measure, v), floor: 0, label: "The client's values over rounds" });
    strip = new Surface($("#client-strip"), { draw: drawStrip, hover: hoverStrip });
    mix = new Surface($("#client-mix"), { draw: drawMix, hover: hoverMix });
    $("#client-close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { tip(null, null); document.body.append($("#tip")); });
    $("#client-before").addEventListener("click", () => step(-1));
    $("#client-after").addEventListener("click", () => step(1));
    dialog.addEventListener("keydown", (event) => {
      if (event.target.closest(".plot")) return; // there, arrows move along the curve
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
  }

  function step(by) {
    const at = others.indexOf(client);
    client = others[(at + by + others.length) % others.length];
    update(run);
  }

  function update(now) {
    if (!dialog.open || now !== run) return;
    setText($("#client-title"), run.nameOf(client));
    const states = ["idle", "working now", "took part in the last round", "its last reply was refused", "dropped in the last round, too slow", "absent", "a newcomer: it never takes part, and is judged apart"];
    setText($("#client-lede"), `Number ${client} · ${states[run.state[client]]}${run.attackers.has(client) ? " · an attacker" : ""}`);
    const pairs = [];
    const s = (v) => score(run.measure, v);
    const [ours, own] = [run.valueOf(client, "clients"), run.valueOf(client, "personal")];
    const word = run.measure === "accuracy" ? "Accuracy" : "Loss";
    if (known(ours)) pairs.push([word, s(ours), "global model"]);
    if (known(own)) pairs.push([`${word}, personal`, s(own), known(ours) ? gain(run.measure, run.gainOf(client)) : ""]);
    if (known(run.sizeOf(client))) pairs.push(["Samples", count(run.sizeOf(client)), "for training"]);
    const n = run.count[client];
    pairs.push(["Took part", `${count(n)} of ${count(run.rounds.length)}`, run.lastRound[client] ? `last in round ${run.lastRound[client]}` : run.state[client] === NEWCOMER ? "never" : "never yet"]);
    if (known(run.lastNorm[client])) pairs.push(["Update", number(run.lastNorm[client], 3), known(run.lastCosine[client]) ? `norm; cosine ${number(run.lastCosine[client], 2)}` : "norm"]);
    if (known(run.lastLoss[client])) pairs.push(["Training loss", number(run.lastLoss[client], 3), "when it last took part"]);
    figures($("#client-figures"), pairs);
    curve(word);
    strip.redraw();
    const row = mixRow();
    $("#client-mix-part").hidden = !row;
    if (row) mix.redraw();
    trouble();
  }

  function curve(word) {
    const found = run.evaluations.filter((e) => known(run.valueOf(client, "clients", e)) || known(run.valueOf(client, "personal", e)));
    setText($("#client-curve-h"), found.length ? `${word} on its test data` : `${word}: this client is not judged`);
    $("#client-curve").hidden = !found.length;
    lines.legend.hidden = !found.length;
    if (!found.length) return;
    const values = (kind) => found.map((e) => { const v = run.valueOf(client, kind, e); return known(v) ? v : null; });
    const series = [];
    const mean = found.map((e) => { const r = run.rounds.find((x) => x.round === e.round); const c = r && r.evaluation && r.evaluation.clients[run.measure]; return c ? c.mean : null; });
    if (mean.some(known)) series.push({ label: "mean of all", color: "--s-train", values: mean, dash: [3, 3], width: 1.25 });
    if (values("clients").some(known)) series.push({ label: "global model", color: "--s-clients", values: values("clients") });
    if (values("personal").some(known)) series.push({ label: "personal model", color: "--s-personal", values: values("personal"), dash: [9, 3] });
    lines.tick = tickScore(run.measure);
    lines.ceiling = run.measure === "accuracy" ? 1 : null;
    lines.set(found.map((e) => e.round), series);
  }

  // --- rounds ---------------------------------------------------------------------------------------------

  function drawStrip(ctx, width, height) {
    if (!run || !run.rounds.length) return;
    const n = run.rounds.length;
    const wide = width / n;
    ctx.fillStyle = color("--tile");
    ctx.fillRect(0, 4, width, height - 24);
    const bad = new Set((run.refusals.get(client) || []).map((r) => r.round));
    run.rounds.forEach((r, i) => {
      if (!r.cohort.has(client)) return;
      ctx.fillStyle = color(bad.has(r.round) ? "--bad" : r.dropped && r.dropped.has(client) ? "--warn" : "--s-clients");
      ctx.fillRect(i * wide, 4, Math.max(1, wide - (wide > 4 ? 1 : 0)), height - 24);
    });
    ctx.fillStyle = color("--muted");
    ctx.textBaseline = "bottom";
    ctx.fillText("round 1", 0, height);
    ctx.textAlign = "right";
    ctx.fillText(String(run.played), width, height);
  }

  function hoverStrip(x) {
    const r = run && run.rounds[Math.floor((x / strip.host.clientWidth) * run.rounds.length)];
    return r ? [`round ${r.round}`, r.refused.includes(client) ? "reply refused" : r.cohort.has(client) ? "took part" : "did not take part"] : null;
  }

  // --- classes --------------------------------------------------------------------------------------------

  function mixRow() {
    const report = run && run.partition && run.partition.report;
    if (!report || !report.counts) return null;
    const names = (run.partition.names || [])[client] ?? run.nameOf(client);
    const place = report.names.indexOf(names);
    return place < 0 ? null : report.counts[place];
  }

  function drawMix(ctx, width, height) {
    const row = mixRow();
    if (!row) return;
    const most = Math.max(...row, 1);
    const wide = width / row.length;
    ctx.fillStyle = color("--s-clients");
    row.forEach((v, c) => { const tall = (v / most) * (height - 20); ctx.fillRect(c * wide + 1, height - 18 - tall, Math.max(1, wide - 2), tall); });
    ctx.fillStyle = color("--muted");
    ctx.textAlign = "center";
    ctx.textBaseline = "bottom";
    const each = Math.max(1, Math.ceil(24 / wide));
    for (let c = 0; c < row.length; c += each) ctx.fillText(String(c), (c + 0.5) * wide, height);
  }

  function hoverMix(x) {
    const row = mixRow();
    if (!row) return null;
    const c = Math.floor((x / mix.host.clientWidth) * row.length);
    return row[c] === undefined ? null : [`class ${c}`, `${plural(row[c], "sample")}, ${percent(row[c] / (row.reduce((a, b) => a + b, 0) || 1), 0)}`];
  }

  function trouble() {
    const found = run.refusals.get(client) || [];
    $("#client-trouble-part").hidden = !found.length;
    $("#client-trouble").replaceChildren(...found.slice(-50).reverse().map((r) => h("li", null, h("b", null, `round ${r.round}`), ` ${r.reason}`)));
  }

  return { open, update };
})();
