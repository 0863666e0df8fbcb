// What a layout means for a model, as figures: what each rank holds, how many tokens fit, what is sent, and how fast it
// is at best on some hardware. The arithmetic is that of the parts that do the work; here it is put together.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/explain/hardware.h"
#include "engine/explain/predict.h"
#include "engine/memory_plan.h"
#include "engine/options.h"
#include "models/config.h"
#include "models/rank_shape.h"
#include "models/wire_bytes.h"
#include "tensor/stored_tensor.h"

namespace sluice::engine {

// A model without its weights.
struct DescribedModel {
  models::ModelConfig config;
  std::shared_ptr<const tensor::TensorSource> source;  // says how matrices are stored
  kernels::DType dtype = kernels::DType::kBf16;
  std::optional<kernels::DType> kv_dtype;  // none: that of products
  bool rounded = false;                    // quantised matrices stay so (kernels::LinearShape)
  int64_t context_length = 0;
  bool fp8_dispatch = false;  // what deepep sends to experts is in e4m3
};
// --model-path as of the server, where config.json is enough, or a .json file that is one. Products are in bf16 unless
// --dtype says otherwise or, `here`, this machine has none.
Result<DescribedModel> describe_model(const EngineOptions& options, bool here);

// Bytes of a step in which every attention group decodes one sequence.
struct TokenWire {
  models::WireBytes of_step;
  double per_token = 0;
};

struct LayoutFacts {
  EngineOptions options;           // adjusted
  std::vector<std::string> notes;  // what was adjusted
  parallel::Layout layout;         // of rank 0
  int64_t instances = 1;
  std::optional<moe::ExpertMap> map;  // nothing: each expert once, in order
  models::TokenReach reach;           // of a token in a layer with experts, with deepep
  models::RankShape rank;             // of rank 0
  int64_t own_weight_bytes = 0;       // of its weights, those that ranks of a machine have in common divided among them
  models::StepBuffers buffers;        // of rank 0
  std::optional<MemoryPlan> memory;   // of each attention group's ranks; none: the model does not fit
  std::string why_not;                // it does not
  double memory_fraction = 0;
  int64_t kv_copies = 1;      // of a token, in an instance
  int64_t unique_tokens = 0;  // that all instances hold
  TokenWire wire;
  std::vector<Prediction> predictions;  // by concurrency; none without rates
};
// kBadOption where the layout is none, or does not divide the model.
Result<LayoutFacts> examine_layout(const DescribedModel& model, const EngineOptions& options, const Hardware& hardware,
                                   const Workload& workload, const std::vector<int64_t>& concurrency);

// The layouts that `devices` of the hardware allow, that divide the model and in which it fits, fastest first at the
// largest concurrency. With `ranks`, those of one instance of so many. Several instances with DP attention are several
// servers behind a gateway.
std::vector<LayoutFacts> weigh_layouts(const DescribedModel& model, const EngineOptions& options,
                                       const Hardware& hardware, const Workload& workload,
                                       const std::vector<int64_t>& concurrency, std::optional<int64_t> ranks = {});

// What rank 0's largest step takes of the hardware's memory, which of a device is not the host's.
int64_t buffer_bytes(const LayoutFacts& facts, const Hardware& hardware);

// "--tp-size 8 --dp-size 8 --enable-dp-attention".
std::string layout_flags(const LayoutFacts& facts);

// Times as many unique tokens as without DP attention for the same memory of keys and values.
double dp_attention_gain(const models::ModelConfig& config, const parallel::Layout& layout);

}  // namespace sluice::engine
