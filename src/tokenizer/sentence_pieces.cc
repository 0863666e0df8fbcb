#include "tokenizer/sentence_pieces.h"

#include <sentencepiece_processor.h>

#include <cmath>

namespace sluice::tokenizer {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581
// normalizer_spec { add_dummy_prefix: false }: a message that is appended to another is merged into it.
constexpr std::string_view kNoPrefix("\x1a\x02\x18\x00", 4);

Result<std::unique_ptr<sentencepiece::SentencePieceProcessor>> processor_of(std::string_view model) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  if (const auto status = processor->LoadFromSerializedProto(model); !status.ok()) {
    return Error{ErrorCode::kProtocol, fmt::format("tokenizer.model: {}", status.error_message())};
  }
  return processor;
}

void append(const sentencepiece::SentencePieceProcessor& processor, std::string_view text, std::vector<int32_t>& ids) {
  std::vector<int> found;
  // Fails only where the model was not loaded.
  const auto status = processor.Encode(text, &found);
  SLUICE_CHECK(status.ok(), "SentencePiece: {}", status.error_message());
  ids.insert(ids.end(), found.begin(), found.end());
}

// Scores of byte-pair models are whole numbers. The best of all ways to divide a text, which others look for, would be
// found in other roundings from the middle on.
bool pieces_keep_apart(const sentencepiece::SentencePieceProcessor& processor) {
  bool has_space = false;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    if (processor.IsControl(id) || processor.IsUnknown(id) || processor.IsByte(id)) continue;
    std::string_view piece = processor.IdToPiece(id);
    has_space |= piece == kSpace;  // else it could join a run of unknown characters
    while (piece.starts_with(kSpace)) piece.remove_prefix(kSpace.size());
    const float score = processor.GetScore(id);
    if (piece.find(kSpace) != std::string_view::npos || score != std::trunc(score)) return false;
  }
  return has_space;
}

}  // namespace

SentencePieces::SentencePieces() = default;
SentencePieces::~SentencePieces() = default;

Result<std::unique_ptr<const SentencePieces>> SentencePieces::load(std::string_view model, bool always_prefix) {
  std::unique_ptr<SentencePieces> out(new SentencePieces());
  SLUICE_TRY(out->processor_, processor_of(model));
  std::vector<int> ids;
  if (!out->processor_->Encode("a", &ids).ok()) {
    return Error{ErrorCode::kProtocol, "tokenizer.model: it cannot encode"};
  }
  out->has_prefix_ = !ids.empty() && out->processor_->IdToPiece(ids[0]).starts_with(kSpace);
  if (out->has_prefix_) {
    SLUICE_TRY(out->inner_, processor_of(std::string(model).append(kNoPrefix)));
  }
  out->always_prefix_ = always_prefix;
  out->may_be_cut_ = pieces_keep_apart(*out->processor_);
  return std::unique_ptr<const SentencePieces>(std::move(out));
}

void SentencePieces::encode(std::string_view text, bool at_start, std::vector<int32_t>& ids) const {
  append(at_start || always_prefix_ || inner_ == nullptr ? *processor_ : *inner_, text, ids);
}

void SentencePieces::encode_rest(std::string_view text, std::vector<int32_t>& ids) const {
  append(inner_ == nullptr ? *processor_ : *inner_, text, ids);
}

size_t SentencePieces::size() const { return static_cast<size_t>(processor_->GetPieceSize()); }
const std::string& SentencePieces::piece(int32_t id) const { return processor_->IdToPiece(id); }

SentencePieces::Kind SentencePieces::kind(int32_t id) const {
  if (processor_->IsByte(id)) return Kind::kByte;
  if (processor_->IsControl(id)) return Kind::kControl;
  return processor_->IsUnknown(id) ? Kind::kUnknown : Kind::kText;
}

}  // namespace sluice::tokenizer
