// The parts of the attention forward, one panel of queries against one key tile in the inner caches, each by itself.
// Loaded by bench/study_attention_parts.py; compiled for the running CPU, which picks the ISA level.
#include <cstdint>

#include "attention/cpu/outputs.h"
#include "attention/cpu/scores.h"
#include "attention/cpu/softmax.h"
#include "attention/heuristics.h"

using namespace flagattn;
using namespace flagattn::FLAGATTN_ISA;

namespace {

// Where everything lies in `data`.
struct Panel {
  float *queries, *keys, *scores, *values, *outputs, *end;

  Panel(float* data, int64_t dim)
      : queries(data),
        keys(queries + dim * kPanel),
        scores(keys + kCpuKeyTile * dim),
        values(scores + kCpuKeyTile * kPanel),
        outputs(values + dim / kStrip * strip_stride(kCpuKeyTile)),
        end(outputs + dim * kPanel) {}
};

constexpr Run kWholeTile{0, static_cast<int32_t>(kCpuKeyTile), 0, static_cast<int32_t>(kCpuKeyTile), 0, kNV};

}  // namespace

extern "C" {

int64_t panel_columns() { return kPanel; }
int64_t tile_keys() { return kCpuKeyTile; }
int64_t panel_floats(int64_t dim) { return Panel(nullptr, dim).end - static_cast<float*>(nullptr); }

void scores(float* data, int64_t dim, int64_t times) {
  const Panel panel(data, dim);
  F32 most[kNV] = {F32::zero(), F32::zero(), F32::zero()};
  for (; times > 0; --times) {
    score_strips<kNV>(panel.keys, dim, kCpuKeyTile / kMR, panel.queries, dim, panel.scores, most);
  }
}

// Over and over in place, with factors that keep the weights near one half.
void exponentials(float* data, int64_t dim, int64_t times) {
  const Panel panel(data, dim);
  PanelStatistics statistics;
  reset(statistics);
  for (float& maximum : statistics.maximum) maximum = 1.0f;
  F32 partial[2][kNV];
  clear(partial);
  for (; times > 0; --times) weigh_run<kNV>(statistics, kWholeTile, 1.0f, panel.scores, partial);
  partial[0][0].store(panel.outputs);
}

void outputs(float* data, int64_t dim, int64_t times) {
  const Panel panel(data, dim);
  const ValueTile values{panel.values, strip_stride(kCpuKeyTile), static_cast<int32_t>(kCpuKeyTile), dim};
  const F32 rescale[kNV] = {F32::set1(0.5f), F32::set1(0.5f), F32::set1(0.5f)};
  RowList ahead;
  for (; times > 0; --times) {
    add_whole_tile<kNV, false>(values, kWholeTile, panel.scores, rescale, panel.outputs, ahead);
  }
}
}
