// Keeps a page up to date by server-sent events. Without it every page works, and shows the moment it was loaded.
"use strict";

(() => {
  const state = document.getElementById("live-state");
  const address = document.body.dataset.live;

  const say = (words, kind) => {
    state.hidden = false;
    state.textContent = words;
    state.className = `live ${kind}`;
  };

  // A part is replaced as a whole: what has the focus in it keeps it, and what is being selected is left alone.
  const replace = (part, html) => {
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return;
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = html;
    if (focused === null) return;
    for (const link of part.querySelectorAll("a[href]")) {
      if (link.getAttribute("href") === focused) {
        link.focus({ preventScroll: true });
        return;
      }
    }
  };

  if (address && "EventSource" in window) {
    const source = new EventSource(address);
    source.addEventListener("parts", (event) => {
      for (const [name, html] of Object.entries(JSON.parse(event.data))) {
        const part = document.getElementById(name);
        if (part) replace(part, html);
      }
      say("live", "on");
    });
    source.addEventListener("away", () => say("the server is away", "off"));
    source.addEventListener("error", () => say("not live", "off"));
    window.addEventListener("pagehide", () => source.close());
  }

  const all = document.getElementById("mark-all");
  if (all) {
    const marks = [...document.querySelectorAll('input[type="checkbox"][name="id"]')];
    const tell = () => {
      const marked = marks.filter((mark) => mark.checked).length;
      all.checked = marked === marks.length;
      all.indeterminate = marked > 0 && marked < marks.length;
    };
    all.hidden = false;
    all.addEventListener("change", () => {
      for (const mark of marks) mark.checked = all.checked;
    });
    for (const mark of marks) mark.addEventListener("change", tell);
  }
})();
