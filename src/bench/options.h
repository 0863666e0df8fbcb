// The options of `sluice bench`, with the names, defaults and meanings of SGLang's bench_serving where that has them.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/options.h"

namespace sluice::bench {

struct BenchOptions {
  std::string backend;
  std::optional<std::string> base_url;
  std::string host;
  std::optional<int64_t> port;
  std::optional<std::string> model;
  std::optional<std::string> served_model_name;
  StringList header;

  std::optional<std::string> tokenizer;
  std::string dataset_name;
  std::string dataset_path;
  int64_t num_prompts = 0;
  int64_t seed = 0;
  bool apply_chat_template = false;
  bool tokenize_prompt = false;

  int64_t random_input_len = 0;
  int64_t random_output_len = 0;
  double random_range_ratio = 0;
  std::optional<int64_t> sharegpt_output_len;
  std::optional<int64_t> sharegpt_context_len;
  int64_t gsp_num_groups = 0;
  int64_t gsp_prompts_per_group = 0;
  int64_t gsp_system_prompt_len = 0;
  int64_t gsp_question_len = 0;
  int64_t gsp_output_len = 0;
  double gsp_range_ratio = 0;
  int64_t gsp_num_turns = 0;
  bool gsp_ordered = false;
  bool gsp_send_routing_key = false;
  bool gsp_fast_prepare = false;
  std::string fixed_prompt;
  int64_t fixed_output_len = 0;

  double request_rate = 0;
  std::optional<int64_t> max_concurrency;
  int64_t warmup_requests = 0;
  bool flush_cache = false;
  bool disable_stream = false;
  bool disable_ignore_eos = false;
  bool return_logprob = false;
  std::optional<std::string> extra_request_body;
  int64_t silence_timeout_secs = 0;
  bool disable_keep_alive = false;
  int64_t threads = 0;

  std::optional<std::string> output_file;
  bool output_details = false;
  bool cache_report = false;
  std::optional<std::string> tag;
  bool disable_tqdm = false;
};

const OptionTable<BenchOptions>& bench_option_table();

// What single rows cannot say: options that exclude or need each other. kBadOption.
Result<void> validate(const BenchOptions& options);

// Every option with its effective value, for the record of a run.
nlohmann::ordered_json to_json(const BenchOptions& options);

}  // namespace sluice::bench
