//! MQTT topic templates with captures, for example `sensors/{source_type}/{source_id}/{type}`. Pure.

/// A template, its filter, and how it reads a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {}
