// Browsers start no workers for pages that are opened as files, and the search runs in one. For
// those pages a worker's script runs in an empty frame instead. The search asks for this name.
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.inside = frame.contentWindow;
    this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    const script = this.inside.document.createElement("script");
    script.src = url;
    this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
    this.inside.document.body.append(script);
  }

  postMessage(data) {
    const event = new this.inside.MessageEvent("message", { data });
    this.ready.then(() => this.inside.dispatchEvent(event));
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
