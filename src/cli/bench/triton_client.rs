//! Generation requests to a Triton server over gRPC: the few messages of its protocol that this takes.

use super::load_test::RequestTimes;
use crate::error::{Error, Result};
use crate::ids::TokenId;
use std::collections::HashMap;
use std::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// `ModelInferRequest` of the server's `inference.GRPCInferenceService`, the fields in use.
#[derive(Clone, PartialEq, prost::Message)]
struct ModelInferRequest {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<InputTensor>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<RequestedOutput>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InputTensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestedOutput {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelStreamInferResponse {
    #[prost(string, tag = "1")]
    error_message: String,
    #[prost(message, optional, tag = "2")]
    infer_response: Option<ModelInferResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ModelInferResponse {
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, InferParameter>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<OutputTensor>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw_output_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OutputTensor {
    #[prost(string, tag = "1")]
    name: String,
}

impl ModelInferResponse {
    fn num_tokens(&self) -> usize {
        let index = self.outputs.iter().position(|output| output.name == "output_ids");
        let ids = index.and_then(|index| self.raw_output_contents.get(index));
        ids.map_or(0, |ids| ids.len() / size_of::<TokenId>())
    }

    fn is_last(&self) -> bool {
        let parameter = self.parameters.get("triton_final_response");
        parameter.is_some_and(|parameter| parameter.bool_param == Some(true))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct InferParameter {
    #[prost(bool, optional, tag = "1")]
    bool_param: Option<bool>,
}

/// A connection to one model of a server.
#[derive(Clone)]
pub(super) struct TritonClient {
    channel: Channel,
    model: String,
}

impl TritonClient {
    /// Connects to the gRPC port at `url`: `localhost:8001`, or with `http://`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(super) async fn connect(url: &str, model: &str) -> Result<Self> {
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let endpoint = Endpoint::from_shared(with_scheme)
            .map_err(|error| Error::invalid(format!("--url {url}: {error}")))?
            .tcp_nodelay(true);
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| Error::unavailable(format!("no connection to {url}: {error:?}")))?;
        Ok(Self { channel, model: model.to_owned() })
    }

    /// Streams `output_tokens` tokens behind `prompt`; end ids are off.
    ///
    /// # Errors
    /// The server's sentence, or that fewer tokens came.
    pub(super) async fn generate(&self, prompt: &[TokenId], output_tokens: usize) -> Result<(RequestTimes, Vec<f64>)> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|error| Error::unavailable(format!("the connection: {error}")))?;
        let message = self.request(prompt, output_tokens);
        let submitted = Instant::now();
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
        let codec = tonic_prost::ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
        let request = tonic::Request::new(tokio_stream::once(message));
        let mut stream = client.streaming(request, path, codec).await.map_err(refused)?.into_inner();
        let (mut times, mut gaps_ms) = (RequestTimes::default(), Vec::with_capacity(output_tokens));
        let mut finished = false;
        // To the end of the call: a server takes a stream that is dropped before for a cancelled one.
        while let Some(reply) = stream.message().await.map_err(refused)? {
            if !reply.error_message.is_empty() {
                return Err(Error::unavailable(format!("the server answered: {}", reply.error_message)));
            }
            let Some(response) = reply.infer_response else { continue };
            let tokens = response.num_tokens();
            if tokens > 0 {
                times.add(submitted.elapsed().as_secs_f64() * 1e3, tokens, &mut gaps_ms);
            }
            finished |= response.is_last();
        }
        if !finished || times.tokens != output_tokens {
            return Err(Error::internal(format!("{} tokens came instead of {output_tokens}", times.tokens)));
        }
        Ok((times, gaps_ms))
    }

    fn request(&self, prompt: &[TokenId], output_tokens: usize) -> ModelInferRequest {
        let ints = |values: &[i32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let tensors = [
            ("input_ids", "INT32", prompt.len(), ints(prompt)),
            ("input_lengths", "INT32", 1, ints(&[prompt.len() as i32])),
            ("request_output_len", "INT32", 1, ints(&[output_tokens as i32])),
            ("end_id", "INT32", 1, ints(&[-1])),
            ("streaming", "BOOL", 1, vec![1]),
        ];
        let mut request = ModelInferRequest { model_name: self.model.clone(), ..Default::default() };
        // What a streaming client reads; the server writes no other tensor then.
        request.outputs =
            ["output_ids", "sequence_length"].map(|name| RequestedOutput { name: name.to_owned() }).into();
        for (name, datatype, columns, bytes) in tensors {
            let shape = vec![1, columns as i64];
            request.inputs.push(InputTensor { name: name.to_owned(), datatype: datatype.to_owned(), shape });
            request.raw_input_contents.push(bytes);
        }
        request
    }
}

fn refused(status: tonic::Status) -> Error {
    Error::unavailable(format!("the server answered: {}", status.message()))
}
