"use strict";
// The head of a run's page: what it is, how far it is, and its figures at a glance.

const Hero = (() => {
  const { $, h, setText, copyable, known, count, score, gain, bytes, joules, duration, plural, quantiles } = Base;
  const SPOKEN = 10000; // ms between two announcements of the progress
  let spoken = 0;

  function update(run) {
    const { start } = run;
    setText($("#run-title"), [run.title, start.partition].filter(Boolean).join(", "));
    const facts = [start.cohort ? `${count(start.cohort)} of ${plural(start.clients, "client")} a round` : null,
      start.peer ? `${start.peer} of ${count(start.peers.length)} peers` : null,
      start.model ? `${start.model}${start.parameters ? ` (${count(start.parameters)} parameters)` : ""}` : null,
      run.engine ? `engine ${run.engine.name}` : start.engine ? `engine ${start.engine}` : null, start.device ? `on ${start.device}` : null,
      known(start.seed) ? `seed ${start.seed}` : null, run.name];
    setText($("#run-lede"), facts.filter(Boolean).join(" · "));
    progress(run);
    banner(run);
    kpis(run);
  }

  function progress(run) {
    const { status, played, planned } = run;
    pill($("#run-status"), status);
    pill($("#bar-status"), status);
    const part = planned ? Math.min(1, played / planned) : 0;
    const over = status === "finished";
    setText($("#run-round"), planned ? `round ${count(played)} of ${count(planned)}` : `round ${count(played)}`);
    const bar = $("#run-progress");
    bar.setAttribute("aria-valuemax", String(planned || 1));
    bar.setAttribute("aria-valuenow", String(played));
    bar.setAttribute("aria-valuetext", `${status}, round ${played} of ${planned}`);
    bar.dataset.status = status;
    $("i", bar).style.width = `${(100 * part).toFixed(2)}%`;
    $("#bar-progress").style.width = status === "running" ? `${(100 * part).toFixed(2)}%` : "0";
    clockOf(run);
    const now = Date.now();
    if (now - spoken > SPOKEN || (over && !$("#run-live").textContent.startsWith("finished"))) {
      spoken = now;
      const last = run.judgedLast;
      const own = last ? run.ownOf(last.evaluation) : null;
      const value = last ? run.mainOf(last.evaluation) : null;
      const what = own ? "client mean" : `test ${run.measure}`;
      setText($("#run-live"), `${status}, round ${played} of ${planned}${known(value) ? `, ${what} ${score(run.measure, value)}` : ""}`);
    }
  }

  /** Time spent and time left; called every second while the run goes on. */
  function clockOf(run) {
    const parts = [];
    if (run.status === "running") {
      if (known(run.start.time)) parts.push(`${duration(Math.max(0, Date.now() / 1000 - run.start.time))} so far`);
      if (known(run.remaining) && run.played < run.planned) parts.push(`about ${duration(run.remaining)} left`);
      if (run.working) parts.push(`${plural(run.working.cohort.size, "client")} at work on round ${run.working.round}`);
    } else {
      if (known(run.seconds)) parts.push(run.clocked ? `${duration(run.seconds)} machine time` : duration(run.seconds));
      const reason = run.ending && run.ending.event === "result" ? run.ending.reason : null;
      if (reason === "target") parts.push("target reached");
      if (reason === "patience") parts.push(`no better on validation data since round ${run.ending.best_round}`);
      if (reason === "budget") parts.push("its privacy is spent");
      if (reason === "tokens") parts.push("all tokens read");
      if (reason === "stopped") parts.push("stopped early");
    }
    if (run.resumed) parts.push(run.resumed > 1 ? `resumed ${run.resumed} times` : "resumed once");
    setText($("#run-time"), parts.join(" · "));
  }

  function pill(element, status) {
    element.hidden = false;
    element.className = `pill ${status.replace(" ", "-")}`;
    setText(element, status);
  }

  function banner(run) {
    const host = $("#run-banner");
    const notes = [];
    if (run.start.schema > 1) notes.push(h("p", null, "This log was written by a newer version of Atoll: some figures may be missing or wrong."));
    const failed = run.ending && run.ending.event === "error";
    if (failed) notes.push(h("p", null, h("strong", null, run.status === "failed" ? `${run.ending.kind}: ` : ""), run.ending.message || ""));
    if (failed && run.ending.hint) notes.push(h("p", { class: "dim" }, run.ending.hint));
    if (run.status === "cut off") notes.push(h("p", null, "The process ended without a word: it was killed, or the machine went down."));
    if (run.start.run && ["failed", "stopped", "cut off"].includes(run.status)) {
      const path = Base.quoted(run.folder);
      const verb = Base.verbOf(run.start);
      if (run.ending && run.ending.kind === "DivergedError") {
        const { lr } = run.start.config || {};
        const change = known(lr) ? ` --set lr=${Number((lr / 10).toPrecision(3))}` : "";
        notes.push(h("p", null, change ? "Going on would diverge again. Start anew, for example with " : "Going on would diverge again: change that, and start anew with ", copyable(`atoll ${verb} ${path}/config.toml${change}`)));
      } else {
        notes.push(run.checkpoint ? h("p", null, `Go on from round ${run.checkpoint.round} with `, copyable(`atoll ${verb} --resume ${path}`))
          : h("p", null, "It was over before the first checkpoint: there is nothing to resume."));
      }
    }
    const key = notes.map((n) => n.textContent).join();
    host.hidden = !notes.length;
    host.dataset.status = run.status;
    if (host.dataset.key !== key) { host.dataset.key = key; host.replaceChildren(...notes); }
  }

  // --- figures --------------------------------------------------------------------------------------------

  function kpis(run) {
    const last = run.judgedLast;
    const found = [];
    const { measure } = run;
    const s = (v) => score(measure, v);
    const name = measure === "accuracy" ? "accuracy" : "loss";
    if (last) {
      const { overall, clients, personal, newcomers, validation } = last.evaluation;
      const c = clients[measure];
      const p = personal[measure];
      const own = run.ownOf(last.evaluation); // what clients would use
      if (own) found.push(["Client mean", s(own.mean), p ? "of personal models" : best(run, (e) => (run.ownOf(e) || {}).mean)]);
      if (known(overall[measure])) found.push([`Test ${name}`, s(overall[measure]), p ? "of the global model" : best(run, (e) => e.overall[measure])]);
      if (own) {
        found.push([run.lowIsGood ? "90th percentile" : "10th percentile", s(run.lowIsGood ? own.p90 : own.p10), p ? "of personal models" : "of the clients"]);
        found.push(["Worst client", s(run.lowIsGood ? own.max : own.min), worstName(run, p ? "personal" : "clients")]);
      }
      if (p && c) found.push(["Global model", s(c.mean), `client mean; personal ${gain(measure, run.lowIsGood ? c.mean - p.mean : p.mean - c.mean)}`]);
      if (validation[measure]) found.push(["Validation", s(validation[measure].mean), best(run, (e) => (e.validation[measure] || {}).mean)]);
      for (const [figure, value] of Object.entries(overall).filter(([key]) => key.startsWith("accuracy."))) {
        found.push([`Only ${figure.slice("accuracy.".length)}`, score("accuracy", value), "test set, other parts taken away"]);
      }
      if (known(overall.attack_success)) found.push(["Attack success", score("accuracy", overall.attack_success), `of ${plural(run.attackers.size, "attacker")}`]);
      if (newcomers[measure]) found.push(["Newcomers", s(newcomers[measure].mean), "client mean"]);
    }
    if (run.last) {
      if (run.clocked) {
        const at = (run.ending || {}).target_virtual_seconds;
        found.push(["Virtual time", duration(run.last.clock.ended), known(at) ? `target after ${duration(at)}` : "on clients’ devices"]);
        found.push(["Energy", joules(run.last.allEnergy), "of all clients"]);
      }
      if (run.blurred) {
        const { epsilon, delta, exact, private: kept } = run.promised;
        const of = `${exact ? "" : "at most, "}${known(run.budget) ? `of ${Base.number(run.budget)} ` : ""}at delta ${Base.number(delta)}`;
        found.push(["Epsilon", known(epsilon) ? Base.number(epsilon, 3) : "infinite", kept ? of : "not private: seeded noise"]);
      }
      if (run.counted) found.push(["Traffic", bytes(run.last.allUp + run.last.allDown), `${bytes(run.last.allUp)} up`]);
      const [pace] = known((run.ending || {}).seconds_per_round) ? [run.ending.seconds_per_round] : quantiles(run.rounds.slice(-50).map((r) => r.seconds), [0.5]) || [];
      found.push(["A round", known(pace) ? duration(pace) : "–", run.clocked ? "machine time, without evaluation" : "without evaluation"]);
    }
    if (!found.length) found.push(["Rounds", "0", run.status === "running" ? "the first is being played" : "none was played to its end"]);
    Base.figures($("#run-kpis"), found);
  }

  function best(run, value) {
    let [top, at] = [null, 0];
    for (const r of run.rounds) {
      const v = r.evaluation ? value(r.evaluation) : null;
      if (known(v) && (top === null || (run.lowIsGood ? v < top : v > top))) [top, at] = [v, r.round];
    }
    if (top === null) return "";
    return at === run.judgedLast.round ? "the best so far" : `best ${score(run.measure, top)}, round ${at}`;
  }

  function worstName(run, kind) {
    const values = run.eachLast && run.eachLast[kind];
    if (!values) return "";
    let at = -1;
    values.forEach((v, i) => { if (known(v) && (at < 0 || (run.lowIsGood ? v > values[at] : v < values[at]))) at = i; });
    if (at < 0) return "";
    const tested = run.partition && run.partition.tested ? run.partition.tested[at] : null;
    const right = values[at] * tested, whole = Math.abs(right - Math.round(right)) < 1e-3 + 1e-6 * tested; // of texts it is a share of tokens
    const size = !known(tested) ? "" : run.lowIsGood || !whole ? `, on ${plural(tested, "sample")}` : `, ${count(right)} of ${count(tested)}`;
    return `${run.nameOf(run.judged[at])}${size}`;
  }

  return { update, clockOf, pill };
})();
