// JupyterLab draws an output's image without its alternative text. This draws it with it, from where IPython puts it:
// metadata["image/png"]["alt"] of the output. A container of modules as JupyterLab loads it, written by hand, because
// there is nothing to bundle.
"use strict";
(() => {
  const name = "lesa-alternative-text";
  let shared;

  async function extension() {
    const versions = shared["@jupyterlab/rendermime"];
    const { IRenderMimeRegistry, RenderedImage } = (await Object.values(versions)[0].get())();

    class DescribedImage extends RenderedImage {
      async render(model) {
        await super.render(model);
        const said = (model.metadata[this.mimeType] ?? {}).alt;
        for (const image of said ? this.node.querySelectorAll("img") : []) {
          image.alt = said;
        }
      }
    }

    const factory = { safe: true, mimeTypes: ["image/png"], createRenderer: options => new DescribedImage(options) };
    return {
      id: `${name}:plugin`,
      autoStart: true,
      requires: [IRenderMimeRegistry],
      activate: (app, rendermime) => rendermime.addFactory(factory, 90) // as JupyterLab ranks its own
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB ?? {};
  window._JUPYTERLAB[name] = {
    init: scope => {
      shared = scope;
    },
    get: async () => {
      const plugin = await extension();
      return () => plugin;
    }
  };
})();
