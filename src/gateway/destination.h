// Which workers a request may go to, and who chooses among them: what the client's model, data-parallel rank and
// routing keys say, before any load is looked at.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "gateway/body_scan.h"
#include "gateway/context.h"
#include "gateway/kv_events/view.h"
#include "gateway/loop_state.h"
#include "net/http.h"

namespace sluice::gateway {

// An answer that the client gets instead.
struct Refusal {
  int status = 400;
  std::string_view code;
  std::string message;
};

// Loop thread only. Views are of the client's head.
class Destination {
 public:
  // None: the request may go. `facts` are those of its body; with several models its routing text is set apart by
  // model.
  std::optional<Refusal> read(Context& context, LoopState& loop, const net::RequestHead& head, BodyFacts& facts);

  // After read(): the prompt in tokens, if there are workers whose caches are known by them. Returns how many it has, 0
  // if that is not known.
  size_t read_tokens(const Context& context, Endpoint endpoint, std::string_view body);
  // The request goes to that worker.
  void sent_to(const Context& context, const Worker& worker, TimePoint sent_at) const;
  // It was not computed there after all; `sent_at` as it was then, which tells it from other requests alike.
  void unsent(const Context& context, const Worker& worker, TimePoint sent_at) const;

  // The place among the usable workers of the one that the client names, under a policy that lets it.
  std::optional<uint64_t> target() const { return policy_->takes_target() ? target_ : std::nullopt; }
  const Policy& policy() const { return *policy_; }
  std::string_view policy_name() const { return policy_name_; }
  // Model and rank are what was asked for; whether a worker can be used now is another question. Null if nobody serves
  // the model any more. Valid as LoopState::roster() is.
  const Roster* roster(const Context& context, LoopState& loop) const {
    return loop.roster(context.fleet, model_, rank_);
  }
  // What the policy gets to know.
  RequestFacts facts(const Context& context, const BodyFacts& body, int64_t prompt_tokens, TimePoint now) const;
  // What is changed in the body for that worker.
  BodyChanges changes_for(const Worker& worker) const;
  // The model that was asked for, by its own name; empty = whichever the worker serves.
  const std::string& model() const { return model_; }
  // Those of the model alone; null where all models are one.
  HitRates* hits() const { return hits_; }
  // Bytes of the routing text that are not of the prompt.
  size_t salt() const { return salt_; }

 private:
  void add_known(const Context& context, TimePoint now, routing::PrefixMatch& prefix) const;
  std::optional<Refusal> read_model(Context& context, LoopState& loop, BodyFacts& facts);
  std::optional<Refusal> read_rank(Context& context, LoopState& loop, const net::Headers& headers,
                                   const BodyFacts& facts);
  std::optional<Refusal> read_keys(const Context& context, const net::Headers& headers);

  const Policy* policy_ = nullptr;
  std::string_view policy_name_;
  HitRates* hits_ = nullptr;
  std::string model_;          // that a worker has to serve; empty = any
  bool rename_model_ = false;  // the client called it by another name ...
  std::string model_name_;     // ... and this is its own
  size_t salt_ = 0;
  std::optional<int64_t> rank_;
  std::string_view routing_key_, identity_;
  std::optional<uint64_t> target_;
  std::unique_ptr<KvPrompt> tokens_;  // null: what the workers hold of it is only believed
};

}  // namespace sluice::gateway
