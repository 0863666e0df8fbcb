// From a request of a client to the samples that answer it: sends one Backend request per sample, follows them, and
// sees to it that nothing goes on in a rank that nobody waits for.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/api/background.h"
#include "engine/api/context.h"
#include "engine/api/inbox.h"
#include "engine/api/output_text.h"
#include "engine/backend.h"
#include "protocol/answers.h"

namespace sluice::engine {

// How a sample's text and scores are made.
struct SampleFormat {
  OutputText::Options text;
  bool texts_in_scores = false;  // tokens of log-probabilities come with their text
  bool length_is_ours = false;   // nobody asked for so many tokens: there may be fewer
};
struct PlannedSample {
  GenerateRequest request;
  SampleFormat format;
};

struct GenerationPlan {
  std::vector<PlannedSample> samples;  // prompt-major: sample i belongs to prompt i / per_prompt
  size_t per_prompt = 1;
  size_t copied_tokens = 0;  // of prompts, beyond the first sample of each
  std::optional<int64_t> dp_rank;
  bool measured = true;
  std::vector<std::string> labels = {};  // of the request's metrics (LabelledMetrics)
  bool background = false;               // it goes on when its client has left
};

// Lives in the handler of its exchange, or in the background; loop thread only.
class Generation {
 public:
  Generation(ApiCall& call, GenerationPlan plan);
  // In the background: nobody's connection holds it, it lives on `loop` and ends before `api` does.
  Generation(ApiContext& api, net::EventLoop& loop, GenerationPlan plan, std::shared_ptr<RequestTrace> trace);
  // What has not ended is aborted in its rank.
  ~Generation();
  Generation(const Generation&) = delete;

  // Sends the first sample of each prompt. The other samples of a prompt follow to the same rank once its first token
  // is there: then its KV is in that rank's prefix cache, and the prompt is computed once. Where more
  // log-probabilities are wanted than an answer may hold, samples whose length nobody gave get fewer tokens, and if
  // that is not enough it is kInvalidArgument, and nothing is sent; kUnavailable for the background of a server that
  // ends.
  Result<void> start();

  // Waits for news and takes them in; returns the samples that have grown or ended. Empty: the client has left, and
  // this is not in the background. An error is one of the rank's side (status 400, 500 or 503 of a sample), or 503 of
  // what is in the background when the server ends; the other samples are aborted then.
  struct Failure {
    int status = 500;
    std::string message;
    std::string reason;  // for programs (protocol/errors.h); empty: none
  };
  struct Step {
    std::vector<size_t> grown;
    std::optional<Failure> failure;
    size_t failed = 0;  // the sample that failed
  };
  net::Task<Step> next();

  // The samples end as aborted, soon.
  void abort();

  bool done() const { return ended_ == samples_.size(); }
  bool client_gone() const { return client_gone_; }
  size_t size() const { return samples_.size(); }
  size_t per_prompt() const { return plan_.per_prompt; }
  const protocol::Sample& sample(size_t i) const { return samples_[i].sample; }
  // The sample's text may go on with what is kept back for now.
  bool holds_back(size_t i) const { return samples_[i].text.holds_back(); }
  // About as many bytes as log-probabilities and hidden states have in an answer: many are no work for a loop.
  size_t bulk() const;
  // Prompts count once, and so do their cached tokens.
  protocol::Usage usage() const;

 private:
  struct State {
    State(std::shared_ptr<const tokenizer::Tokenizer> tokenizer, const PlannedSample& planned);
    protocol::Sample sample;
    OutputText text;
    const bool texts_in_scores;
    const int32_t first_prompt_id;
    bool sent = false;
    bool aborted = false;  // asked for, once: the rid may be somebody else's afterwards
    bool ended = false;
  };

  Result<void> send(size_t i, std::optional<int64_t> rank);
  Result<void> send_followers(size_t first);
  // Those that it ended.
  std::vector<size_t> end_followers(size_t first);
  void fail(Step& step, size_t i, Failure failure);
  void take(size_t i, RequestOutput output);
  void end(State& state);
  size_t first_open() const;  // there is one
  protocol::SampleTimes times_of(const RequestOutput& output, double finished) const;

  Generation(ApiContext& api, net::EventLoop& loop, net::ServerExchange* client, GenerationPlan plan,
             std::shared_ptr<RequestTrace> trace);

  ApiContext& api_;
  // Before what uses the API when it goes.
  std::unique_ptr<Background::Entry> in_background_;
  net::ServerExchange* const client_;          // null: there is none any more
  const std::shared_ptr<RequestTrace> trace_;  // null: it is not recorded
  GenerationPlan plan_;
  const TimePoint begun_;
  const double begun_unix_;
  std::shared_ptr<Inbox> inbox_;
  std::vector<State> samples_;
  size_t ended_ = 0;
  bool client_gone_ = false;
  bool too_late_ = false;  // for the background, of which nothing begins any more
};

}  // namespace sluice::engine
