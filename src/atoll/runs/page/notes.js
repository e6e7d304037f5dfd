"use strict";
// What went wrong, and how to play the run again.

(() => {
  const { $, h, copyable, quoted, verbOf, count, plural, clock } = Base;
  const { panel } = Panels;
  const SHOWN = 60; // clients of a problem that are named

  panel("problems", () => true, (section, open) => {
    const host = $(".list", section);
    const opened = new Set();
    let shape = null;

    const KINDS = { error: "Run failed", refused: "Reply refused", dropped: "Too slow", problem: "Beside the training" };

    return (run) => {
      const found = [...run.problems.values()].sort((a, b) => (b.last || 0) - (a.last || 0));
      const now = JSON.stringify(found.map((p) => [p.where, p.text, p.count, p.last])) + run.name;
      if (now === shape) return;
      shape = now;
      if (!found.length) {
        host.replaceChildren(h("p", { class: "empty good", role: "listitem" }, "No problems: every reply could be used."));
        return;
      }
      host.replaceChildren(...found.map((p) => {
        const key = `${p.kind}${p.text}`;
        const when = p.first ? (p.first === p.last ? `round ${p.first}` : `rounds ${p.first} to ${p.last}`) : "";
        const who = p.clients.size ? plural(p.clients.size, "client") : "";
        const times = p.count > 1 ? `${count(p.count)} times` : "";
        const body = p.clients.size ? h("div", { class: "chips" }, [...p.clients].slice(0, SHOWN).map((k) =>
          h("button", { type: "button", class: "chip", onclick: () => open(k, [...p.clients]) }, run.nameOf(k))),
        p.clients.size > SHOWN ? h("span", { class: "dim" }, `and ${count(p.clients.size - SHOWN)} more`) : null) : null;
        const line = [h("span", { class: `tag ${p.kind}` }, p.kind === "problem" ? p.where || KINDS.problem : KINDS[p.kind]),
          h("span", { class: "said" }, p.text), h("span", { class: "dim" }, [who, times, when].filter(Boolean).join(" · "))];
        if (!body) return h("div", { class: "problem", role: "listitem" }, line);
        const details = h("details", { class: "problem", role: "listitem", open: opened.has(key) }, h("summary", null, line), body);
        details.addEventListener("toggle", () => { if (details.open) opened.add(key); else opened.delete(key); });
        return details;
      }));
    };
  });

  /** {a: {b: 1}} as [["a.b", "1"]]. */
  function flat(settings, before = "") {
    return Object.entries(settings || {}).flatMap(([key, value]) =>
      (value && typeof value === "object" && !Array.isArray(value) ? flat(value, `${before}${key}.`) : [[before + key, plain(value)]]));
  }

  function plain(value) {
    if (value === null || value === undefined) return "none";
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  function block(title, pairs, kind = null) {
    return h("div", { class: kind }, h("h3", null, title), h("dl", { class: "pairs" }, pairs.map(([key, value]) => h("div", null, h("dt", null, key), h("dd", null, value)))));
  }

  panel("settings", () => true, (section) => {
    let shape = null;
    return (run) => {
      const { start } = run;
      const now = [run.name, run.status, run.resumed, run.engine && run.engine.text, run.checkpoint && run.checkpoint.round].join();
      if (now === shape) return;
      shape = now;
      const verb = verbOf(start);
      const commands = start.run ? [["Play it again", `atoll ${verb} ${quoted(run.folder)}/config.toml`]] : []; // else nothing was kept
      if (start.run && run.checkpoint && run.resumable) commands.unshift(["Go on where it ended", `atoll ${verb} --resume ${quoted(run.folder)}`]);
      if (start.command) commands.push(["It was started with", start.command]);
      $(".commands", section).replaceChildren(...commands.map(([label, text]) => h("div", null, h("h3", null, label), copyable(text))));
      const facts = [["run", run.name], ["started", clock(start.time)], ["model", start.model], ["parameters", start.parameters === undefined ? undefined : count(start.parameters)],
        ["classes", start.classes === null ? "none (a regression)" : start.classes], ["device", start.device],
        ["engine", run.engine ? run.engine.text || run.engine.name : start.engine], ["target", start.target || "none"],
        ["commit", start.commit || "unknown"], ["last checkpoint", run.checkpoint ? `round ${run.checkpoint.round}` : "none"]];
      if (run.resumed) facts.push(["resumed", plural(run.resumed, "time")]);
      $(".columns", section).replaceChildren(
        block("Settings", flat(start.config), "wide"),
        block("Run", facts.filter(([, value]) => value !== undefined).map(([key, value]) => [key, String(value)])),
        block("Versions", flat(start.versions)));
    };
  });
})();
