// A forward pass over a batch of rows, for every family: embedding, the blocks of its layers one after another, head.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "models/config.h"
#include "models/layers/kv_cache.h"
#include "models/layers/residual.h"
#include "models/layers/routing.h"
#include "models/layers/scratch.h"
#include "models/layers/state_cache.h"
#include "models/layers/weights.h"
#include "moe/copy_chooser.h"
#include "moe/dispatcher.h"
#include "parallel/groups.h"
#include "parallel/overlap.h"
#include "parallel/phase_clock.h"

namespace sluice::models {

// One step in device memory, in buffers that keep their addresses for the life of the rank.
struct ForwardBatch {
  int64_t n_tokens = 0;
  int64_t n_seqs = 0;
  int64_t n_logits = 0;
  const int32_t* token_ids = nullptr;    // [n_tokens]
  const int32_t* positions = nullptr;    // [n_tokens]
  const int32_t* kv_slots = nullptr;     // [n_tokens]
  const int32_t* query_start = nullptr;  // [n_seqs + 1]
  const int32_t* seq_lens = nullptr;     // [n_seqs]
  const int32_t* table_rows = nullptr;   // [n_seqs]
  const int32_t* logit_rows = nullptr;   // [n_logits]
  const int32_t* slot_table = nullptr;   // [rows, table_width]
  int64_t table_width = 0;
  // The same in host memory, for what the host decides.
  const int32_t* host_token_ids = nullptr;
  const int32_t* host_query_start = nullptr;
  const int32_t* host_seq_lens = nullptr;
  // In host memory, [those of token_ids that are -1, hidden]: what stands in place of their embeddings.
  std::span<const float> embeds;
  // Tokens and logits of each attention group in this step; with DP attention.
  std::span<const int64_t> group_tokens;
  std::span<const int64_t> group_logits;
  int64_t padded_rows = 0;                 // as StepBatch has it
  const int32_t* padded_groups = nullptr;  // [groups] group_tokens, with padded_rows
  bool extend = true;                      // some rank prefills
};

// A step of which one half is computed while rows of the other are on their way. The halves have no logits.
struct HalfBatches {
  std::array<ForwardBatch, 2> half;
  // A sequence is in both: the second half's part of it needs what the first one's puts into the cache.
  bool in_order = false;
};

// What a block sees of the step.
struct Step {
  const ForwardBatch& batch;
  const KvCache& kv;
  const StateCache& states;
  const Scratch& scratch;
  const parallel::Groups* groups = nullptr;  // null: this rank has the whole model
  moe::Dispatcher* dispatcher = nullptr;
  parallel::Overlap* overlap = nullptr;  // null: nothing else is to be computed while rows are on their way
  int64_t routed_before = 0;             // tokens of a first half that routers got in this step
  const float* cos_sin = nullptr;        // [n_tokens, 2, rotary_dim / 2]
  uint32_t number = 0;                   // of the step
  int layer = 0;                         // that is computed

  // Where this rank is, for the ranks that wait for it and for messages.
  void progress(parallel::Phase phase) const {
    if (groups != nullptr) groups->all->progress({.step = number, .phase = phase, .layer = layer});
    parallel::PhaseClock::enter(phase);
  }
};

// How half a layer is divided among ranks.
enum class Spread : uint8_t {
  kAttention,  // by heads, within an attention group: each rank computes a summand for the group's tokens
  kAllTokens,  // by the weights' rows and columns or by expert, among all ranks: a summand for the tokens of all groups
  kOwnTokens,  // by tokens: each rank computes some of its group's, whole
};

// Half a layer: x += f(RMSNorm(x)), f being attention or an FFN. It declares its rank's weights and its scratch when it
// is made.
class Block {
 public:
  Block(Residual residual, Spread spread) : residual_(std::move(residual)), spread_(spread) {}
  virtual ~Block() = default;

  const Residual& residual() const { return residual_; }
  Spread spread() const { return spread_; }

  // out += f(x), or this rank's summand of it. x [n, hidden] of dtype, out [n, hidden]. An error is that of a group of
  // ranks.
  virtual Result<void> run(const kernels::Context& context, const Step& step, const void* x, int64_t n,
                           float* out) const = 0;

 private:
  const Residual residual_;
  const Spread spread_;
};

class LayerCommunicator;

// The logits of a step's rows, in device memory: pieces one after another, each the logits [rows, width] of `width` ids
// that follow those before; the first n_logits rows are the step's. None on a rank that does not lead its attention
// group.
struct Logits {
  const float* values = nullptr;
  int64_t rows = 0;
  std::vector<int64_t> widths;
};

// The experts of a layer that this rank has.
struct ExpertLayer {
  int64_t number = 0;  // of the model's layer
  ExpertsWeight gate_up;
  ExpertsWeight down;
};

// Used by the rank's thread.
class Decoder {
 public:
  // Declares embedding, final norm and head. `weights.groups()` outlive it.
  Decoder(const ModelConfig& config, WeightStore& weights);
  ~Decoder();

  // Where the blocks declare their scratch, what they keep of every token and every sequence, and their routers.
  Scratch& scratch() { return scratch_; }
  KvCache& kv() { return kv_; }
  const KvCache& kv() const { return kv_; }
  StateCache& states() { return states_; }
  const StateCache& states() const { return states_; }
  RoutingRecord& routing() { return routing_; }
  // That of all layers with experts, which have the same sizes. What sends rows is in Step::dispatcher.
  const moe::Dispatcher& dispatcher(const moe::Sizes& sizes);
  const RoutingRecord& routing() const { return routing_; }
  // Null where each expert is there once.
  const moe::CopyChooser* copy_chooser() const { return copy_chooser_.get(); }
  moe::CopyChooser* copy_chooser() { return copy_chooser_.get(); }
  // In the order of routing()'s layers.
  void add_experts(const ExpertLayer& layer) { expert_layers_.push_back(layer); }
  std::span<const ExpertLayer> expert_layers() const { return expert_layers_; }
  void add(std::unique_ptr<Block> block) { blocks_.push_back(std::move(block)); }
  // Where rows are sent to experts: what does not need them is computed meanwhile. It outlives the decoder. At most
  // once, after the last add().
  void overlap(parallel::Overlap& overlap);
  // What overlap() does for buffer_bytes(), for a decoder that is not run.
  void count_halves(size_t halves);
  // Whether forward() takes halves.
  bool splits() const { return halves_ > 1; }
  // As Runner::ask_between_layers().
  void ask_between_layers(std::function<bool()> goes_on) { goes_on_ = std::move(goes_on); }
  // Once, after the last add() and overlap(). kExhausted if the memory cannot be had.
  Result<void> allocate(const kernels::Context& context, int64_t max_tokens);
  // That allocate() and routing().allocate() took.
  size_t buffer_bytes() const;
  size_t dispatch_bytes() const;  // of those, what sends rows to experts took

  // Queues the whole step: K and V of every row into the cache. Returns where the logits of batch.logit_rows will be
  // until the next call. All ranks at once; an error is that of a group of ranks.
  // With `halves` its layers are computed in two; `batch` is the whole still.
  Result<Logits> forward(const kernels::Context& context, const ForwardBatch& batch,
                         const HalfBatches* halves = nullptr) const;
  // What those logits were made of: rows [hidden] of the weights' dtype, of all attention groups where the head is
  // divided among them.
  const void* normed() const { return scratch_.at<void>(logit_normed_); }

 private:
  enum class Order : uint8_t { kAny, kFirst, kSecond };
  // kSecond: each block after the other half's.
  Result<void> layers(const kernels::Context& context, Step step, Order order, float* hidden) const;
  Result<void> layers_in_halves(const kernels::Context& context, const Step& whole, const HalfBatches& halves,
                                float* hidden) const;
  Result<void> embed(const kernels::Context& context, const ForwardBatch& batch, float* hidden) const;
  Result<Logits> head(const kernels::Context& context, const ForwardBatch& batch, const float* hidden) const;
  Result<Logits> exchange_logits(const kernels::Context& context, const ForwardBatch& batch, const float* logits) const;

  const ModelConfig config_;
  const WeightStore& weights_;
  Scratch scratch_;
  Scratch second_scratch_;  // of second halves
  KvCache kv_;
  StateCache states_;
  RoutingRecord routing_;
  const parallel::Groups* const groups_;
  parallel::Slice vocabulary_;  // of `embedding`
  TableWeight embedding_;       // [vocabulary_, hidden]
  std::unique_ptr<LayerCommunicator> communicator_;
  moe::Sizes dispatch_sizes_;
  // Of steps and first halves, and of second halves. Null where no layer has experts, the second where nothing is
  // split.
  std::array<std::unique_ptr<moe::Dispatcher>, 2> dispatchers_;
  parallel::Overlap* overlap_ = nullptr;
  size_t halves_ = 0;  // that overlap
  std::function<bool()> goes_on_;
  std::unique_ptr<moe::CopyChooser> copy_chooser_;
  std::vector<ExpertLayer> expert_layers_;
  std::vector<std::unique_ptr<Block>> blocks_;  // two of each layer
  mutable uint32_t steps_ = 0;
  VectorWeight final_norm_;
  LinearWeight head_;  // [a part of the vocabulary, hidden]
  VectorWeight inverse_frequencies_;
  Scratch::Slot hidden_;        // [n_tokens, hidden]
  Scratch::Slot cos_sin_;       // [n_tokens, 2, rotary_dim / 2]
  Scratch::Slot logit_hidden_;  // [n_logits, hidden]
  Scratch::Slot logit_normed_;  // [n_logits, hidden] of dtype; of all groups, if the head is divided among them
  Scratch::Slot logits_;        // [n_logits, part of the vocabulary], likewise
  Scratch::Slot pieces_;        // [n_logits * vocab], as in Logits
};

// x += Attention(RMSNorm(x)); x += FFN(RMSNorm(x)), with grouped-query attention, rotary positions and a SiLU-gated
// FFN.
std::unique_ptr<Decoder> make_dense_decoder(const ModelConfig& config, WeightStore& weights);

}  // namespace sluice::models
