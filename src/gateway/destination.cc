#include "gateway/destination.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "gateway/forward.h"
#include "gateway/kv_events/kv_caches.h"

namespace sluice::gateway {
namespace {

// Digits and nothing else.
std::optional<uint64_t> number_in(std::string_view text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || at != end) return std::nullopt;
  return number;
}

}  // namespace

std::optional<Refusal> Destination::read(Context& context, LoopState& loop, const net::RequestHead& head,
                                         BodyFacts& facts) {
  policy_ = context.policy.get();
  policy_name_ = context.options.policy;
  if (auto refusal = read_model(context, loop, facts)) return refusal;
  if (context.options.dp_aware) {
    if (auto refusal = read_rank(context, loop, head.headers, facts)) return refusal;
  }
  return policy_->needs_keys() ? read_keys(context, head.headers) : std::nullopt;
}

std::optional<Refusal> Destination::read_model(Context& context, LoopState& loop, BodyFacts& facts) {
  const bool several = context.options.enable_igw;
  if (!facts.model) {
    if (!several) return std::nullopt;
    return Refusal{400, "missing_model", "model is required: this gateway serves several"};
  }
  const auto alias = context.model_aliases.find(*facts.model);
  rename_model_ = alias != context.model_aliases.end();
  const std::string& model = rename_model_ ? alias->second : *facts.model;
  if (!several && !context.options.strict_model_match) {
    if (rename_model_) model_name_ = model;
    return std::nullopt;
  }
  if (loop.roster(context.fleet, model, std::nullopt) == nullptr || model.empty()) {
    return Refusal{404, "model_not_found", fmt::format("no worker serves the model {}", model)};
  }
  model_ = model;
  model_name_ = model;
  if (!several) return std::nullopt;
  const Context::NamedPolicy& own = loop.policy_of(context, model);
  policy_ = own.policy.get();
  policy_name_ = own.name;
  hits_ = own.hits.get();
  // The same text is another prefix for another model.
  facts.routing_text.prepend(model + '\0');
  salt_ = model.size() + 1;
  return std::nullopt;
}

std::optional<Refusal> Destination::read_rank(Context& context, LoopState& loop, const net::Headers& headers,
                                              const BodyFacts& facts) {
  rank_ = facts.rank;
  std::string_view named = "routed_dp_rank";
  bool readable = !facts.rank_is_no_integer;
  if (const auto header = headers.get(kRankHeader)) {
    named = kRankHeader;
    const auto number = number_in(*header);
    readable = number && *number < (uint64_t{1} << 32);
    if (readable) rank_ = static_cast<int64_t>(*number);
  }
  if (readable && !rank_) return std::nullopt;
  const int64_t ranks = loop.most_ranks(context.fleet);
  // Without a worker nobody knows; the answer is then that there is none.
  if (readable && (ranks == 0 || (*rank_ >= 0 && *rank_ < ranks))) return std::nullopt;
  return Refusal{400, "bad_request",
                 fmt::format("{} must be an integer from 0 to {}", named, std::max<int64_t>(ranks, 1) - 1)};
}

std::optional<Refusal> Destination::read_keys(const Context& context, const net::Headers& headers) {
  const auto first_of = [&](const auto& names) -> std::string_view {
    for (const auto& name : names) {
      if (const auto value = headers.get(name); value && !value->empty()) return *value;
    }
    return {};
  };
  routing_key_ = first_of(context.options.routing_key_headers);
  identity_ = first_of(std::array<std::string_view, 3>{"authorization", "x-forwarded-for", "cookie"});
  const auto target = headers.get("x-smg-target-worker");
  if (!target) return std::nullopt;
  target_ = number_in(*target);
  if (target_) return std::nullopt;
  return Refusal{400, "bad_request", "X-SMG-Target-Worker must be the place of a worker, 0 or more"};
}

RequestFacts Destination::facts(const Context& context, const BodyFacts& body, int64_t prompt_tokens,
                                TimePoint now) const {
  RequestFacts facts{.routing_text = body.routing_text,
                     .routing_key = routing_key_,
                     .identity = identity_,
                     .prompt_tokens = prompt_tokens,
                     .now = now,
                     .prefix = {}};
  if (!policy_->needs_prefix()) return facts;
  facts.prefix = context.index.match(body.routing_text);
  facts.prefix.leave_out(salt_);
  if (tokens_ != nullptr) add_known(context, facts.now, facts.prefix);
  return facts;
}

size_t Destination::read_tokens(const Context& context, Endpoint endpoint, std::string_view body) {
  if (context.kv == nullptr || !policy_->needs_prefix() || !context.kv->view.knows_any()) return 0;
  auto prompt = context.kv->reader->read(endpoint, body);
  if (!prompt) return 0;
  tokens_ = std::make_unique<KvPrompt>(std::move(*prompt));
  return tokens_->tokens.size();
}

void Destination::sent_to(const Context& context, const Worker& worker, TimePoint sent_at) const {
  if (tokens_ != nullptr) context.kv->view.sent(*tokens_, worker.number, sent_at);
}

void Destination::unsent(const Context& context, const Worker& worker, TimePoint sent_at) const {
  if (tokens_ != nullptr) context.kv->view.unsent(*tokens_, worker.number, sent_at);
}

// What is known of a worker replaces what is believed of it, or adds to it where not all is known.
void Destination::add_known(const Context& context, TimePoint now, routing::PrefixMatch& prefix) const {
  const KvView& view = context.kv->view;
  thread_local std::vector<KvView::Known> known;
  view.match(*tokens_, now, known);
  routing::PrefixMatch both = prefix;  // all but who holds what
  both.matched_bytes = 0;
  both.num_holders = both.num_parts = 0;
  const auto believe = [&](uint32_t worker, size_t bytes) {
    if (!view.counts(worker, *tokens_) || view.of(worker).knowledge != KvKnowledge::kAll) both.add(worker, bytes);
  };
  for (const uint32_t worker : prefix.workers()) believe(worker, prefix.matched_bytes);
  for (const auto& part : prefix.partly()) believe(part.worker, part.bytes);
  for (const KvView::Known& of : known) {
    both.add(of.worker, static_cast<size_t>(static_cast<double>(of.tokens) * static_cast<double>(prefix.total_bytes) /
                                            static_cast<double>(tokens_->tokens.size())));
  }
  prefix = both;
}

BodyChanges Destination::changes_for(const Worker& worker) const {
  BodyChanges changes;
  if (worker.dp.rank >= 0) changes.rank = worker.dp.rank;
  if (rename_model_) changes.model = model_name_;
  return changes;
}

}  // namespace sluice::gateway
