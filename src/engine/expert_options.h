// What the options of `sluice server` say of experts.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/options.h"
#include "moe/deepep_mode.h"
#include "moe/expert_map.h"
#include "moe/expert_recorder.h"
#include "moe/rebalance.h"

namespace sluice::engine {

// Reads the file of --init-expert-location, so that ranks need it nowhere else, limits the running requests to what
// --deepep-mode takes, settles --deepep-dispatch-dtype, and says what is changed or chosen by default, as lines for the
// log. Once, by the front, after adjust_layout(), of a layout that check_layout() takes. kBadOption names the flag.
Result<std::vector<std::string>> adjust_experts(EngineOptions& options);

// Of adjusted options.
moe::DeepEpOptions deepep_of(const EngineOptions& options);
// --deepep-dispatch-dtype, or what SGLANG_DEEPEP_BF16_DISPATCH says with auto. kBadOption names what cannot be.
Result<bool> sends_fp8(const EngineOptions& options);
// True if something is computed while rows are on their way to experts, and what batches that are split for it are
// split by; the latter only with --enable-two-batch-overlap.
bool overlaps(const EngineOptions& options);
std::optional<double> split_threshold_of(const EngineOptions& options);
moe::ExpertPlacement expert_placement_of(const EngineOptions& options);
// Nothing without --enable-eplb.
std::optional<moe::RebalanceOptions> rebalance_of(const EngineOptions& options);

// Nothing without --expert-distribution-recorder-mode.
Result<std::optional<moe::ExpertRecorder::Options>> expert_recorder_of(const EngineOptions& options);

}  // namespace sluice::engine
