// Endpoints that change what the ranks do: pauses, profiles, other weights. Each reaches every rank and answers when
// all of them have done it.
#pragma once

#include "engine/api/context.h"

namespace sluice::engine {

// Sends it to all ranks and waits for them, whether or not the client is still there.
net::Task<Result<Backend::RankAnswers>> ask_ranks(ApiCall& call, ControlKind kind, std::string text, Duration at_most);
net::Task<Result<void>> control_ranks(ApiCall& call, ControlKind kind, std::string text, Duration at_most);

net::Task<> pause_generation(ApiCall& call);
net::Task<> continue_generation(ApiCall& call);
net::Task<> set_internal_state(ApiCall& call);
// Of this process, not of the ranks: ?level=N.
net::Task<> set_trace_level(ApiCall& call);
net::Task<> start_profile(ApiCall& call);
net::Task<> stop_profile(ApiCall& call);
net::Task<> update_weights_from_disk(ApiCall& call);
net::Task<> update_weight_version(ApiCall& call);

}  // namespace sluice::engine
