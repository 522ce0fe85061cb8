// The before/after slider of Compare Images (SSIM): ComfyUI's own widget, which core fills for its own node only.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const urls = (images) => (images ?? []).map((image) => api.apiURL(`/view?${new URLSearchParams(image)}`));

app.registerExtension({
  name: "KontextKit.CompareSSIM",
  nodeCreated(node) {
    if (node.constructor.comfyClass !== "KontextCompareSSIM") return;
    const slider = node.widgets?.find((widget) => widget.name === "compare_view");
    if (!slider) return;
    slider.serialize = false; // the pictures are the last run's: neither saved with the workflow
    slider.options = { ...slider.options, serialize: false }; // nor queued, which would run the node anew each time
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      slider.value = { beforeImages: urls(output?.a_images), afterImages: urls(output?.b_images) };
      slider.callback?.(slider.value);
    };
  },
});
