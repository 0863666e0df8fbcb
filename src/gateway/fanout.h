// Calls that go to every worker at once: control verbs, stored responses, the engines' metrics. Each worker has a
// time limit of its own, and at most --rl-fanout-concurrency are asked at a time.
#pragma once

#include "gateway/admin.h"

namespace sluice::gateway {

// The same call to every worker; one document says who did it and who did not. Where nobody did, it is an error of the
// status on which they agree, else 502.
net::Task<net::Response> fan_out(AdminCall& call);
// As fan_out(), of a body that must say which requests are meant: engines take an empty "rid" for all of them.
net::Task<net::Response> abort_request(AdminCall& call);
// /v1/responses/{id} and what is below it: the first worker that knows it answers.
net::Task<net::Response> stored_response(AdminCall& call);
struct Keeper {
  WorkerPtr who;      // null: all that could say so do not have it, or there is one worker
  WorkerList silent;  // where `who` is null: those that could not be asked, one of which may have it
};
// The worker that keeps the response `id`, which is asked of all of them, within 3 s together. `client`: the request of
// whoever goes on from it. `interruption`, of this call alone, ends the wait; when this returns it has ended.
net::Task<Keeper> keeper_of_response(Context& context, LoopState& loop, const net::RequestHead& client, std::string id,
                                     std::shared_ptr<Interruption> interruption);
net::Task<net::Response> engine_metrics(AdminCall& call);

}  // namespace sluice::gateway
