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
  WorkerPtr who;      // null: none that could be asked has it, or nobody was asked
  WorkerList silent;  // where `who` is null: those that could not be asked, one of which may have it
};
// Which of `workers` keeps the response `id`: all are asked, within 3 s together. Nobody is where there is one worker,
// or the id is none. `client`: the request of whoever goes on from it. `interruption`, of this call alone, ends the
// wait; when this returns it has ended.
net::Task<Keeper> keeper_of_response(Context& context, LoopState& loop, WorkerList workers,
                                     const net::RequestHead& client, std::string id,
                                     std::shared_ptr<Interruption> interruption);
// For a client: nobody says that it keeps the response, and `silent`, of which there is one at least, could not be
// asked.
std::string nobody_keeps(std::string_view id, const WorkerList& silent);
net::Task<net::Response> engine_metrics(AdminCall& call);

}  // namespace sluice::gateway
