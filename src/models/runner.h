// The seam between the scheduler and the models: one step's batch in, logits out. The scheduler never sees weights,
// kernels or device memory; a model never sees requests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/kernel_times.h"
#include "moe/deepep_mode.h"
#include "moe/expert_map.h"
#include "moe/expert_recorder.h"
#include "moe/rebalance.h"
#include "parallel/groups.h"
#include "parallel/overlap.h"

namespace sluice::models {

// One step of work as the scheduler describes it, in host memory. An idle rank passes a batch of zero rows.
struct StepBatch {
  std::span<const int32_t> token_ids;    // [n_tokens]
  std::span<const int32_t> positions;    // [n_tokens] position of each token in its sequence
  std::span<const int32_t> kv_slots;     // [n_tokens] slot of the KV pool that this token's K and V are written to
  std::span<const int32_t> query_start;  // [n_seqs + 1] rows of sequence i are query_start[i] .. query_start[i + 1]
  std::span<const int32_t> seq_lens;     // [n_seqs] tokens of sequence i after this step, cached prefix included
  std::span<const int32_t> table_rows;   // [n_seqs] row of the slot table that belongs to sequence i
  std::span<const int32_t> logit_rows;   // [n_logits] rows of the batch whose logits are wanted, ascending
  // [those of token_ids that are -1, hidden] what stands in place of their embeddings; the leader's alone.
  std::span<const float> embeds;
  // With DP attention, of each attention group, equal on all ranks of a step: its tokens and its logits.
  std::span<const int64_t> group_tokens;
  std::span<const int64_t> group_logits;
  // Rows that each group has where rows of all groups are together, what it lacks filled up: a step of a fixed shape.
  // As many as any group's tokens at least; 0: as many as it has tokens. With one batch.
  int64_t padded_rows = 0;
  // Of each attention group, the tokens of the first half of its batch, where the halves are to overlap: while rows of
  // one are on their way the other is computed. Equal on all ranks, which have RunnerOptions::overlap. Empty: one
  // batch.
  std::span<const int64_t> first_half;
  bool extend = true;  // some rank of the instance prefills, in which all ranks agree
};

struct KvPlan {
  int64_t slots = 0;        // tokens that the pool holds; slot 0 is a dummy for padded rows and not used
  int32_t table_rows = 0;   // sequences that may be in flight at once
  int32_t table_width = 0;  // longest sequence, in tokens
  int32_t kept_states = 0;  // of prefixes; their rows come after the `table_rows` of sequences
};

// What the rest of the engine needs to know of a model.
struct ModelInfo {
  std::string model_type;                  // "llama", "qwen2", ...
  std::vector<std::string> architectures;  // as in config.json
  int64_t vocab_size = 0;
  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_labels = 0;              // of a classifier; 0: the model generates text
  int64_t context_length = 0;          // of the longest sequence
  int64_t positions = 0;               // that the model was made for
  std::vector<int32_t> eos_token_ids;  // from generation_config.json, config.json or GGUF metadata
  std::optional<int32_t> bos_token_id;
  std::string dtype;           // arithmetic of the matrix products: "bf16" or "f32"
  bool rounds_inputs = false;  // of products with quantised weights, to 8 bits where that is faster
  std::string kv_dtype;        // of the KV cache: "bf16", "f32" or "fp8_e4m3"
  size_t kv_bytes_per_token = 0;
  size_t state_bytes_per_sequence = 0;  // kept of a sequence whatever its length, such as lightning attention's
  size_t weight_bytes = 0;              // packed weights that this rank maps
  // Of those, each that n ranks of the instance have in common as one n-th; 0: nothing is, and all are its own.
  size_t own_weight_bytes = 0;
  size_t buffer_bytes = 0;  // of a step, of the largest size
  // Sampling defaults of generation_config.json, where given.
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
};

// What the routers of a model with experts chose, in host memory. All empty for a model without.
struct Routing {
  int64_t layers = 0;  // those that have experts
  int64_t top_k = 0;
  std::vector<int64_t> numbers;  // [layers] of the model's layers
  std::vector<int32_t> experts;  // [layers, n_tokens, top_k]
  std::vector<float> margins;    // [layers, n_tokens] least change of a score for which another choice is made
};

// Values of a checkpoint's tensor, widened.
struct WeightValues {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// One rank's model. Used by one thread, the scheduler's; inside, kernels run on the rank's thread pool.
class Runner {
 public:
  virtual ~Runner() = default;

  virtual const ModelInfo& info() const = 0;
  // Once, before the first forward. kExhausted if the memory cannot be had.
  virtual Result<void> allocate_kv(const KvPlan& plan) = 0;
  // The slot table, host memory of [table_rows, table_width] int32, row-major: entry [r][p] is the KV slot of position
  // p of the sequence that owns row r. The scheduler writes it; forward() reads rows up to seq_lens. Valid after
  // allocate_kv.
  virtual std::span<int32_t> slot_table() = 0;
  // Runs one step, on all ranks of the instance at once. Returns float32 logits [n_logits, vocab_size] in host memory,
  // valid until the next call; none on a rank that does not lead its attention group. K and V of all rows are in the
  // pool afterwards. Fails only for reasons outside the program: a device fault, another rank that is gone.
  virtual Result<std::span<const float>> forward(const StepBatch& batch) = 0;
  // Of a runner with the whole model: asked before each of its layers from now on, by who calls forward(). Where it
  // says no, forward() ends with kCancelled, the step's K and V are undefined, and so are states of the rows in it.
  // Empty: nobody is asked.
  virtual void ask_between_layers(std::function<bool()> goes_on) { (void)goes_on; }
  // Whether forward() computes batches in halves; the same on all ranks. If not, StepBatch::first_half is ignored.
  virtual bool can_split() const { return false; }
  // Copies the states of one row to another one, for models that have some: a sequence in row `to` goes on where that
  // of row `from` is. Rows of kept states are table_rows .. table_rows + kept_states - 1.
  virtual void copy_state(int32_t from, int32_t to) { (void)from, (void)to; }
  // Row `row` of the last step's logits before the head: the final norm's output, [hidden_size]; of a classifier what
  // its labels score, [num_labels], before any softmax.
  virtual std::vector<float> hidden(int64_t row) const { return (void)row, std::vector<float>(); }
  // Other weights in place of these, of a checkpoint with the same configuration; K and V of the pool are the old ones'
  // still. kInvalidArgument with what differs. After an error the weights are what they were; kInternal: they are not.
  using Progress = std::function<void(double, std::string_view)>;
  virtual Result<void> reload(const std::string& model_path, const Progress& progress) {
    (void)progress;
    return Error{ErrorCode::kUnimplemented, model_path + ": this model's weights cannot be loaded anew"};
  }
  // The first `rows` (or all) of a tensor of the checkpoint whose weights these are, as it calls it. kNotFound: there
  // is none; kUnavailable: the files are not those that were loaded.
  virtual Result<WeightValues> read_weight(std::string_view name, int64_t rows) const {
    return (void)rows, Error{ErrorCode::kUnimplemented, std::string(name) + ": this model's weights are in no files"};
  }
  // Tokens that each expert got since the start, [layers with experts][experts]; empty for a model without. Of experts
  // with copies, or that move, each place is counted.
  virtual std::vector<std::vector<int64_t>> expert_loads() const { return {}; }
  // Of the last step; with RunnerOptions::record_routing. Where experts are reached by deepep, of this rank's part of
  // its attention group's tokens.
  virtual Routing last_routing() const { return {}; }
  // With RunnerOptions::record_routing: the next step's tokens go to `routing.experts` whatever the routers choose, so
  // that two runs can be compared beyond a near tie. last_routing() still says what they chose. An empty one ends it.
  virtual void force_routing(const Routing& routing) { (void)routing; }
  // All zero without RunnerOptions::rebalance.
  virtual moe::RebalanceCounts rebalance_counts() const { return {}; }
  virtual moe::RankTokens take_rank_tokens() { return {}; }
  // A hash of where experts and their copies are and how they came there, the same on all ranks; of a model without 0.
  virtual uint64_t expert_places() const { return 0; }
  // "start", "stop" or "dump" of a recording of what this rank's experts get; a dump is moe::ExpertRecorder::take() as
  // text. kUnimplemented without RunnerOptions::expert_recorder, or experts.
  virtual Result<std::string> record_experts(std::string_view command) {
    return Error{ErrorCode::kUnimplemented, std::string(command) + ": this model has no experts"};
  }
};

struct RunnerOptions {
  std::string model_path;                 // a folder, or a .gguf file; already resolved (models/locate.h)
  std::string device = "cpu";             // cpu, or sim: the test device whose memory the host cannot touch
  std::string dtype = "auto";             // auto (bf16 where the machine has it, else f32), bfloat16, float32
  std::string kv_cache_dtype = "auto";    // auto (dtype), bfloat16, fp8_e4m3 with scales
  int threads = 1;                        // of this rank, the calling thread included
  int64_t max_step_tokens = 8192;         // largest n_tokens of a step
  int64_t max_step_seqs = 256;            // largest n_seqs, and n_logits unless input logprobs are asked for
  std::optional<int64_t> context_length;  // overrides the model's
  std::string config_override;            // as in load_config()
  bool dummy_weights = false;             // of the configured shapes, read from no file
  size_t memory_bytes = 0;                // what the weights may take; 0 = no limit
  bool embeds_only = false;               // of hidden states alone something is made: there need be no output head
  bool record_routing = false;            // keep the routers' choices of the last step
  std::optional<moe::ExpertRecorder::Options> expert_recorder;
  moe::ExpertPlacement expert_placement;
  std::optional<moe::RebalanceOptions> rebalance;  // with expert_placement.moves
  moe::DeepEpOptions deepep;
  // This rank's part of an instance; they outlive the runner. Null: it has the whole model.
  const parallel::Groups* groups = nullptr;
  // Of the same ranks. Null: nothing is computed while rows are on their way.
  parallel::Overlap* overlap = nullptr;
  kernels::KernelTimes* kernel_times = nullptr;  // what each kernel takes is added to it; not on device sim
  int shared_weights_fd = -1;  // memfd shared by the ranks of one host: the first one packs into it, the others map it
};

// Loads a model. `progress` gets a share in 0..1 and what is being done, from the calling thread.
Result<std::unique_ptr<Runner>> load_runner(const RunnerOptions& options,
                                            const std::function<void(double, std::string_view)>& progress = {});

}  // namespace sluice::models
