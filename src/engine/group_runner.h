// A rank's model as one part of an instance: steps are computed by all ranks of the instance together. The rank that
// leads an attention group plans its steps; the group's others get the batch from it, so that no two ranks of a group
// can plan differently.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/joint_step.h"
#include "models/runner.h"
#include "parallel/exchange_log.h"
#include "parallel/groups.h"
#include "parallel/overlap.h"
#include "parallel/phase_clock.h"
#include "parallel/stay_alive.h"
#include "parallel/step_member.h"

namespace sluice::engine {

// Used by the rank's thread. Every rank makes the same number of calls of forward() and join(), each when member() says
// that a row is to be posted.
class GroupRunner final : public models::Runner {
 public:
  // `runner` was loaded for `groups` and `overlap`, which outlive this. `split_threshold`: batches are split in halves,
  // as in models::split_batch(), where all groups can; absent: none is. `configuration`: a hash of what the ranks must
  // share besides the layout.
  GroupRunner(std::unique_ptr<models::Runner> runner, const parallel::Groups& groups,
              parallel::Overlap* overlap = nullptr, std::optional<double> split_threshold = std::nullopt,
              uint64_t configuration = 0);

  const models::ModelInfo& info() const override { return runner_->info(); }
  Result<void> allocate_kv(const models::KvPlan& plan) override;
  std::span<int32_t> slot_table() override { return runner_->slot_table(); }
  // Of a leader with work. The instance steps, whatever the other groups do.
  Result<std::span<const float>> forward(const models::StepBatch& batch) override;
  // Of a leader; its group's others copy before their next step.
  void copy_state(int32_t from, int32_t to) override;
  std::vector<float> hidden(int64_t row) const override { return runner_->hidden(row); }
  Result<void> reload(const std::string& model_path, const Progress& progress) override {
    return runner_->reload(model_path, progress);
  }
  std::vector<std::vector<int64_t>> expert_loads() const override { return runner_->expert_loads(); }
  moe::RebalanceCounts rebalance_counts() const override { return runner_->rebalance_counts(); }
  moe::RankTokens take_rank_tokens() override { return runner_->take_rank_tokens(); }
  uint64_t expert_places() const override { return runner_->expert_places(); }
  Result<std::string> record_experts(std::string_view command) override { return runner_->record_experts(command); }
  Result<models::WeightValues> read_weight(std::string_view name, int64_t rows) const override {
    return runner_->read_weight(name, rows);
  }
  // From now on last_routing() is of all tokens of the attention group, without margins, also where its ranks choose
  // for a part each. On all ranks alike, before the first step.
  void gather_routing() { gathers_routing_ = true; }
  models::Routing last_routing() const override { return gathered_ ? *gathered_ : runner_->last_routing(); }
  void force_routing(const models::Routing& routing) override { runner_->force_routing(routing); }

  // From now on steps in which nobody prefills, and that are one batch, have the shape of parallel::fixed_rows(). On
  // all ranks alike, before the first step; `most` is no more than a step may have tokens.
  void fill_groups_up(int64_t most) { most_fixed_rows_ = most; }

  // What a leader's next row says beside its batch.
  struct Outlook {
    StepOutlook step;
    bool more_to_come = false;  // there is work here that brings no tokens yet
    bool can_prefill = false;   // a prompt could begin in this step, and does unless it is held back
    bool force_prefill = false;
  };
  void announce(const Outlook& outlook) { outlook_ = outlook; }
  // When this rank is to call forward() or join(); who takes its messages tells it of them.
  parallel::StepMember& member() { return member_; }
  // Of the last exchange; the same on all ranks.
  const parallel::StepPlan& last_plan() const { return member_.plan(); }
  // In the next step.
  OtherGroups others() const { return others_of(last_plan(), groups_.layout.attention_dp().rank); }
  const StepShape& last_shape() const { return shape_; }
  // Attention groups that computed prompts in the last step.
  int64_t prefilling() const { return prefilling_; }

  // Of a rank without work of its own: what the others do. False: nobody had work.
  Result<bool> join();
  // Bytes that the ranks of this attention group have got from other ranks since their start: rows and batches too. Up
  // to the last exchange.
  uint64_t wire_bytes() const { return wire_bytes_; }
  // Of this rank, in steps: time in which rows were on their way, and the part of it in which it computed. Nothing
  // where nothing overlaps.
  parallel::Turns::Times overlapped() const;
  // Of the instance, whosever work it was, and those of them that ran in two halves.
  uint64_t steps() const { return steps_; }
  uint64_t split_steps() const { return split_steps_; }
  uint64_t fixed_steps() const { return fixed_steps_; }  // those of a fixed shape
  // On some host ranks outnumber cores. Told to every rank alike, before the first step: they meet once more then.
  void set_crowded(bool crowded) { crowded_ = crowded; }
  // Runs while steps are recorded, those of other groups' work too.
  parallel::PhaseClock& phase_clock() { return phase_clock_; }
  // Keeps the others patient, while it lives, with what takes as long as it takes between two steps: files.
  std::unique_ptr<parallel::StayAlive> stay_alive() const {
    const parallel::Progress where{.step = static_cast<uint32_t>(steps_), .phase = parallel::Phase::kControl};
    return std::make_unique<parallel::StayAlive>(*groups_.all, where);
  }

 private:
  Result<void> exchange(parallel::StepRow row);
  // The log gets what was exchanged last.
  Error failed(Error error);
  // The row's column for a batch.
  int64_t can_split(const models::StepBatch& batch) const;
  // From the rows that were exchanged.
  void count_wire();
  // The leader's part, and the others'. What is known of the batch is in the plan.
  std::vector<int32_t> pack(const models::StepBatch& batch);
  models::StepBatch unpack();
  Result<std::span<const float>> run(models::StepBatch batch);
  Result<void> gather_routing_of(int64_t tokens);

  const std::unique_ptr<models::Runner> runner_;
  const parallel::Groups& groups_;
  parallel::Overlap* const overlap_;
  const std::optional<double> split_threshold_;
  const parallel::Context host_;  // control data is host memory
  int64_t table_width_ = 0;
  bool crowded_ = false;
  parallel::StepMember member_;
  StepShape shape_;
  int64_t prefilling_ = 0;
  Outlook outlook_;
  uint64_t wire_bytes_ = 0;
  uint64_t steps_ = 0;
  uint64_t split_steps_ = 0;
  uint64_t fixed_steps_ = 0;
  int64_t most_fixed_rows_ = 0;
  bool gathers_routing_ = false;
  std::optional<models::Routing> gathered_;
  parallel::PhaseClock phase_clock_;
  std::vector<parallel::StepRow> rows_;
  parallel::ExchangeLog exchanges_;
  std::vector<int32_t> words_;       // a batch on its way
  std::vector<int32_t> copies_;      // of states, from and to in turn, that the others have not heard of
  std::vector<int32_t> sent_table_;  // of a leader: the slot table as its group's others have it
};

}  // namespace sluice::engine
