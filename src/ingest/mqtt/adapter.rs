//! What both generations of the client have in common. Its modules for MQTT 3.1.1 and 5 have the same names and
//! different types, hence a macro: it is expanded in `v4` and `v5`, which bring those names into scope together with
//! `connect`, `empty_publish`, `filter`, `granted`, `published` and `failure` for what differs.

/// Implements [`super::link::Wire`] and [`super::link::Requests`] for the client in scope.
macro_rules! adapter {
    () => {
        pub(super) struct Client(Box<EventLoop>);

        /// The client's request channel and the form in which it wants to be asked for an answer.
        pub(super) struct Sender {
            client: AsyncClient,
            publish: Publish,
        }

        impl Wire for Client {
            type Requests = Sender;

            fn open(options: &Options, access: Access, setup: &Setup) -> (Self, Sender) {
                let (client, eventloop) = connect(options, access, setup);
                (Self(Box::new(eventloop)), Sender { client, publish: empty_publish() })
            }

            async fn poll(&mut self) -> Result<Option<Heard>, Failure> {
                self.0.poll().await.map(heard).map_err(|error| failure(&error))
            }

            fn heard_before(&mut self) -> Option<Option<Heard>> {
                self.0.state.events.pop_front().map(heard)
            }

            fn accept_every_release(&mut self) {
                let mut publish = empty_publish();
                publish.qos = QoS::ExactlyOnce;
                for pkid in 1..=u16::MAX {
                    publish.pkid = pkid;
                    // With manual acks this sets the packet id's mark and asks for no answer; the event it leaves
                    // behind is taken back at once.
                    let known = self.0.state.handle_incoming_packet(Packet::Publish(publish.clone()));
                    debug_assert!(matches!(known, Ok(None)));
                    self.0.state.events.pop_back();
                }
            }
        }

        impl Requests for Sender {
            fn answer(&mut self, pkid: u16, twice: bool) -> bool {
                self.publish.pkid = pkid;
                self.publish.qos = if twice { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                self.client.try_ack(&self.publish).is_ok()
            }

            fn subscribe(&mut self, filters: Vec<String>, qos: Qos) -> bool {
                let qos = match qos {
                    Qos::AtMostOnce => QoS::AtMostOnce,
                    Qos::AtLeastOnce => QoS::AtLeastOnce,
                    Qos::ExactlyOnce => QoS::ExactlyOnce,
                };
                let filters = filters.into_iter().map(|text| filter(text, qos));
                self.client.try_subscribe_many(filters).is_ok()
            }

            fn publish(&mut self, topic: &str, payload: Vec<u8>) -> bool {
                self.client.try_publish(topic, QoS::AtLeastOnce, true, payload).is_ok()
            }

            fn disconnect(&mut self) -> bool {
                self.client.try_disconnect().is_ok()
            }
        }

        fn heard(event: Event) -> Option<Heard> {
            match event {
                Event::Incoming(Packet::ConnAck(connack)) => {
                    Some(Heard::Connected { session: connack.session_present })
                }
                Event::Incoming(Packet::Publish(publish)) => Some(Heard::Publish(link::Publish {
                    topic: Bytes::from(publish.topic),
                    payload: publish.payload,
                    qos: quality(publish.qos),
                    pkid: publish.pkid,
                    dup: publish.dup,
                })),
                Event::Incoming(Packet::PubRel(release)) => Some(Heard::Released(release.pkid)),
                Event::Incoming(Packet::SubAck(suback)) => {
                    Some(Heard::Granted(suback.return_codes.into_iter().map(granted).collect()))
                }
                Event::Incoming(Packet::PubAck(puback)) => Some(Heard::Published(published(&puback))),
                Event::Outgoing(Outgoing::PubAck(_) | Outgoing::PubRec(_)) => Some(Heard::Answered),
                _ => None,
            }
        }

        fn quality(qos: QoS) -> Qos {
            match qos {
                QoS::AtMostOnce => Qos::AtMostOnce,
                QoS::AtLeastOnce => Qos::AtLeastOnce,
                QoS::ExactlyOnce => Qos::ExactlyOnce,
            }
        }
    };
}

pub(super) use adapter;
